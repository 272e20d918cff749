//! Image, network, container, start, publish: each can be repeated.

use std::sync::Arc;

use super::{
    super::{
        ProvisionWorker,
        leases::{ActiveJob, StopReason},
    },
    JobError, attachment, spec, step,
};
use crate::{
    backend::{Compute, Network},
    core::queue::{
        claim::Claimed,
        step::{StepName, StepStatus},
    },
};

pub(super) async fn perform(
    worker: &ProvisionWorker,
    job: &Claimed,
    active: &Arc<ActiveJob>,
) -> Result<String, JobError> {
    let (spec, attachment) = (spec(worker, job), attachment(job));
    let (compute, network_backend) = (&worker.compute, &worker.network_backend);
    let progress = |line| active.steps.progress(StepName::Image, line);
    let image = step(worker, active, StepName::Image, compute.ensure_image(&spec.image, &progress));
    // The one step that can take minutes: its owner need not wait for it to change their mind.
    tokio::select! {
        done = image => done?,
        () = active.cancelled.cancelled() => {
            active.steps.end(StepName::Image, StepStatus::Failed, Some("cancelled".into()));
            return Err(StopReason::Cancelled.into());
        }
    }
    step(worker, active, StepName::Network, network_backend.ensure_network(&attachment.network)).await?;
    let container_id = step(worker, active, StepName::Container, compute.create(&spec, &attachment)).await?;
    step(worker, active, StepName::Start, compute.start(spec.instance)).await?;
    step(worker, active, StepName::Publish, network_backend.publish(spec.instance, &attachment)).await?;
    Ok(container_id)
}
