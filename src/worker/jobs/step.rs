//! Running one step of a job: it begins only while the lease is confirmed, and is recorded for the job's owner.

use std::sync::Arc;

use super::super::{
    leases::{ActiveJob, StopReason},
    provision_worker::ProvisionWorker,
};
use crate::{
    backend::BackendError,
    core::queue::step::{StepName, StepStatus},
};

/// Why an attempt did not succeed.
#[derive(Debug)]
pub enum JobError {
    /// It must not go on.
    Stopped(StopReason),
    /// A step failed.
    Backend(BackendError),
}

impl From<StopReason> for JobError {
    fn from(reason: StopReason) -> Self {
        Self::Stopped(reason)
    }
}

impl From<BackendError> for JobError {
    fn from(error: BackendError) -> Self {
        Self::Backend(error)
    }
}

/// Runs a step: confirms the lease, does the work, and records how it ended.
///
/// # Errors
/// `Stopped` when the attempt must not go on; the work was not begun then. `Backend` with the error of the work.
pub(super) async fn run<T>(
    worker: &ProvisionWorker,
    active: &Arc<ActiveJob>,
    name: StepName,
    work: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, JobError> {
    worker.leases.checkpoint(active).await?;
    tracing::debug!(step = %name, "began step");
    active.steps.begin(name);
    let result = work.await;
    match &result {
        Ok(_) => active.steps.end(name, StepStatus::Succeeded, None),
        Err(error) => {
            // The line at the attempt's end has the cause; this one has the step.
            tracing::debug!(step = %name, %error, "step failed");
            active.steps.end(name, StepStatus::Failed, Some(error.to_string().into()));
        }
    }
    Ok(result?)
}
