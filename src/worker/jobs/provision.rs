//! Provisioning an instance: image, network, container, start, publish. Each step can be repeated.

use std::sync::Arc;

use super::{
    super::{
        leases::{ActiveJob, StopReason},
        provision_worker::ProvisionWorker,
    },
    plan,
    step::{self, JobError},
};
use crate::{
    backend::{Compute, Network},
    core::queue::{
        claim::Claimed,
        step::{StepName, StepStatus},
    },
};

/// Provisions the instance. Returns the runtime's id of its container.
///
/// # Errors
/// Those of the first step that fails.
pub(super) async fn perform(
    worker: &ProvisionWorker,
    job: &Claimed,
    active: &Arc<ActiveJob>,
) -> Result<String, JobError> {
    let (spec, attachment) = (plan::container_spec(worker, job), plan::attachment(job));
    let (compute, network) = (&worker.compute, &worker.network);
    let progress = |line| active.steps.progress(StepName::Image, line);
    let image = step::run(worker, active, StepName::Image, compute.ensure_image(&spec.image, &progress));
    // A pull can take minutes, so a delete does not wait for its end. Other steps are short.
    tokio::select! {
        result = image => result?,
        () = active.cancelled.cancelled() => {
            active.steps.end(StepName::Image, StepStatus::Failed, Some("cancelled".into()));
            return Err(StopReason::Cancelled.into());
        }
    }
    step::run(worker, active, StepName::Network, network.ensure_network(&attachment.network)).await?;
    let container_id = step::run(worker, active, StepName::Container, compute.create(&spec, &attachment)).await?;
    step::run(worker, active, StepName::Start, compute.start(spec.instance)).await?;
    step::run(worker, active, StepName::Publish, network.publish(spec.instance, &attachment)).await?;
    Ok(container_id)
}
