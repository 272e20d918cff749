//! Undoing an attempt that failed: what it created goes, what was there before it stays.
//!
//! A container carries the attempt that created it. So this needs no memory of how far the attempt came, and holds as well
//! where the runtime's answer was lost, or where the attempt was cut off at its deadline.

use std::sync::Arc;

use super::{
    super::{
        ProvisionWorker,
        leases::{ActiveJob, StopReason},
    },
    JobError, attempt,
};
use crate::{
    backend::{Attempt, BackendError, Compute, ContainerState, Network, Observed},
    core::queue::{
        claim::Claimed,
        step::{StepName, StepStatus},
    },
};

/// Does the work, and undoes it when it fails or is called off.
pub(super) async fn on_failure(
    worker: &ProvisionWorker,
    job: &Claimed,
    active: &Arc<ActiveJob>,
    work: impl Future<Output = Result<String, JobError>>,
) -> Result<Option<String>, JobError> {
    let error = match work.await {
        Ok(container_id) => return Ok(Some(container_id)),
        Err(error) => error,
    };
    match &error {
        // Another worker may hold the lease: leave everything as it is.
        JobError::Halted(StopReason::Lost) => {}
        JobError::Halted(StopReason::Cancelled) | JobError::Backend(_) => undo(worker, job, active).await,
    }
    Err(error)
}

/// What cannot be undone now is undone by the next attempt, by the delete, or by the observer.
pub(super) async fn undo(worker: &ProvisionWorker, job: &Claimed, active: &Arc<ActiveJob>) {
    active.steps.begin(StepName::Undo);
    let instance = job.lease.instance;
    let undone: Result<(), BackendError> = async {
        let found = worker.compute.inspect(instance).await?;
        if let Some(container) = found.filter(|container| is_made_by(attempt(job), container)) {
            worker.network_backend.unpublish(instance).await?;
            worker.compute.discard(&container).await?;
        }
        // A container that stays needs it, running or not, and the runtime knows.
        worker.network_backend.release_network(job.network).await?;
        Ok(())
    }
    .await;
    match undone {
        Ok(()) => active.steps.end(StepName::Undo, StepStatus::Undone, None),
        Err(error) => active.steps.end(StepName::Undo, StepStatus::Failed, Some(error.to_string().into())),
    }
}

/// Whether this attempt created it; or an earlier one of the same job, which ended before its process ran. Otherwise it
/// may hold data: it ran before the job began, or since an attempt whose end could not be written.
fn is_made_by(attempt: Attempt, container: &Observed) -> bool {
    container.made_by.is_some_and(|made_by| {
        made_by == attempt || made_by.job == attempt.job && container.state == ContainerState::Created
    })
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::core::id::{HostId, InstanceId, JobId};

    #[test]
    fn undo_removes_only_what_its_job_created_and_nothing_that_ran_before() {
        let (this, ended) =
            (Attempt { job: JobId::new(), token: 2 }, ContainerState::Exited { exit_code: 1, oom_killed: false });
        let earlier = Attempt { token: 1, ..this };
        let other = Attempt { job: JobId::new(), token: 2 };
        for (made_by, state, expected) in [
            (Some(this), ContainerState::Created, true),
            (Some(this), ContainerState::Running, true),
            (Some(this), ended, true),
            (Some(earlier), ContainerState::Created, true),
            (Some(earlier), ContainerState::Running, false),
            (Some(earlier), ended, false),
            (Some(other), ContainerState::Created, false),
            (Some(other), ContainerState::Running, false),
            (None, ContainerState::Created, false),
        ] {
            let container = Observed {
                instance: InstanceId::new(),
                generation: 1,
                made_by,
                host: Some(HostId::new()),
                container_id: "c".into(),
                state,
                created_at: OffsetDateTime::UNIX_EPOCH,
            };
            assert_eq!(is_made_by(this, &container), expected, "{made_by:?} {state:?}");
        }
    }
}
