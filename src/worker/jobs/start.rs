//! Starting an instance again: its container is started with everything it holds.
//!
//! That needs neither the image nor its registry. Only when there is no container of the instance's generation is one
//! provisioned.

use std::sync::Arc;

use super::{
    super::{leases::ActiveJob, provision_worker::ProvisionWorker},
    plan, provision,
    step::{self, JobError},
};
use crate::{
    backend::{Compute, Network},
    core::queue::{claim::Claimed, step::StepName},
};

/// Starts the instance. Returns the runtime's id of its container.
///
/// # Errors
/// Those of the first step that fails.
pub(super) async fn perform(
    worker: &ProvisionWorker,
    job: &Claimed,
    active: &Arc<ActiveJob>,
) -> Result<String, JobError> {
    let (instance, attachment) = (job.lease.instance, plan::attachment(job));
    let (compute, network) = (&worker.compute, &worker.network);
    let existing = step::run(worker, active, StepName::Container, compute.inspect(instance)).await?;
    let Some(container) = existing.filter(|container| container.generation == job.generation) else {
        return provision::perform(worker, job, active).await;
    };
    let join_network = async {
        network.ensure_network(&attachment.network).await?;
        network.rejoin(instance, &attachment).await
    };
    step::run(worker, active, StepName::Network, join_network).await?;
    step::run(worker, active, StepName::Start, compute.start(instance)).await?;
    step::run(worker, active, StepName::Publish, network.publish(instance, &attachment)).await?;
    Ok(container.container_id)
}
