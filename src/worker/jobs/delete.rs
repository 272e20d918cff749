//! Removing an instance from its host. A part that does not exist any more counts as removed.

use std::sync::Arc;

use super::{
    super::{leases::ActiveJob, provision_worker::ProvisionWorker},
    step::{self, JobError},
};
use crate::{
    backend::{Compute, Network},
    core::queue::{claim::Claimed, step::StepName},
};

/// Removes the instance's container, with everything it holds, and its network where nothing else uses that.
///
/// # Errors
/// Those of the first step that fails.
pub(super) async fn perform(worker: &ProvisionWorker, job: &Claimed, active: &Arc<ActiveJob>) -> Result<(), JobError> {
    let instance = job.lease.instance;
    step::run(worker, active, StepName::Unpublish, worker.network.unpublish(instance)).await?;
    step::run(worker, active, StepName::Remove, worker.compute.remove(instance)).await?;
    step::run(worker, active, StepName::Network, worker.network.release_network(job.network)).await?;
    Ok(())
}
