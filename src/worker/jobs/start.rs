//! Starting an instance again: the container that is there, with all that it holds, is started.
//!
//! Neither its image nor the registry is needed for that, so none is asked for. Only where there is no container of the
//! instance's generation is one provisioned.

use std::sync::Arc;

use super::{
    super::{ProvisionWorker, leases::ActiveJob},
    JobError, attachment, provision, step,
};
use crate::{
    backend::{Compute, Network},
    core::queue::{claim::Claimed, step::StepName},
};

pub(super) async fn perform(
    worker: &ProvisionWorker,
    job: &Claimed,
    active: &Arc<ActiveJob>,
) -> Result<String, JobError> {
    let (instance, attachment) = (job.lease.instance, attachment(job));
    let (compute, network_backend) = (&worker.compute, &worker.network_backend);
    let found = step(worker, active, StepName::Container, compute.inspect(instance)).await?;
    let Some(container) = found.filter(|found| found.generation == job.generation) else {
        return provision::perform(worker, job, active).await;
    };
    let network = async {
        network_backend.ensure_network(&attachment.network).await?;
        network_backend.rejoin(instance, &attachment).await
    };
    step(worker, active, StepName::Network, network).await?;
    step(worker, active, StepName::Start, compute.start(instance)).await?;
    step(worker, active, StepName::Publish, network_backend.publish(instance, &attachment)).await?;
    Ok(container.container_id)
}
