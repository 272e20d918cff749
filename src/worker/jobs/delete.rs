//! Removing an instance from its host. Whatever is gone already is success.

use std::sync::Arc;

use super::{
    super::{ProvisionWorker, leases::ActiveJob},
    JobError, step,
};
use crate::{
    backend::{Compute, Network},
    core::queue::{claim::Claimed, step::StepName},
};

pub(super) async fn perform(worker: &ProvisionWorker, job: &Claimed, active: &Arc<ActiveJob>) -> Result<(), JobError> {
    let instance = job.lease.instance;
    step(worker, active, StepName::Unpublish, worker.network_backend.unpublish(instance)).await?;
    step(worker, active, StepName::Remove, worker.compute.remove(instance)).await?;
    step(worker, active, StepName::Network, worker.network_backend.release_network(job.network)).await?;
    Ok(())
}
