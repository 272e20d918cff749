//! The undo of a provision or start that failed: removes what the attempt created, and leaves what existed before it.
//!
//! A container's labels name the attempt that created it. So the undo needs no record of how far the attempt came, and
//! also works where the runtime's answer was lost or the attempt was cut off at its deadline. Where the undo itself
//! fails, the next attempt, the delete or `reconcile` removes what is left.

use std::sync::Arc;

use super::{
    super::{
        leases::{ActiveJob, StopReason},
        provision_worker::ProvisionWorker,
    },
    plan,
    step::JobError,
};
use crate::{
    backend::{Attempt, BackendError, Compute, Container, ContainerState, Network},
    core::queue::{
        claim::Claimed,
        step::{StepName, StepStatus},
    },
};

/// Does the work, and undoes it when it fails or is cancelled.
///
/// # Errors
/// The error of the work; that of the undo is logged and recorded in its step.
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
        // Another worker may hold the lease, and the container may be its by now.
        JobError::Stopped(StopReason::LeaseLost) => {}
        JobError::Stopped(StopReason::Cancelled) | JobError::Backend(_) => undo(worker, job, active).await,
    }
    Err(error)
}

/// Undoes the attempt.
pub(super) async fn undo(worker: &ProvisionWorker, job: &Claimed, active: &Arc<ActiveJob>) {
    active.steps.begin(StepName::Undo);
    let instance = job.lease.instance;
    let result: Result<(), BackendError> = async {
        let existing = worker.compute.inspect(instance).await?;
        if let Some(container) = existing.filter(|container| is_made_by(plan::attempt(job), container)) {
            worker.network.unpublish(instance).await?;
            worker.compute.discard(&container).await?;
        }
        // The runtime keeps the network while a container uses it, running or not.
        worker.network.release_network(job.network).await?;
        Ok(())
    }
    .await;
    match result {
        Ok(()) => active.steps.end(StepName::Undo, StepStatus::Undone, None),
        Err(error) => {
            tracing::warn!(%error, "could not undo the attempt; a later attempt or check removes the rest");
            active.steps.end(StepName::Undo, StepStatus::Failed, Some(error.to_string().into()));
        }
    }
}

/// Returns whether the attempt may remove the container: it created it, or an earlier attempt of the same job did,
/// which ended before the container ran. Any other container may hold data, because it ran before the job began or
/// since an attempt whose end could not be written.
fn is_made_by(attempt: Attempt, container: &Container) -> bool {
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
    fn undo_removes_only_what_its_job_created() {
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
            let container = Container {
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
