//! The work of each kind of job, in steps that can be repeated.
//!
//! ```text
//! provision   image → network → container → start → publish
//! start       container (exists?) → network → start → publish; without a container of this generation: provision
//! delete      unpublish → remove → network
//! ```
//!
//! Each step reads what exists and changes it to the state that the job requires, so that an attempt can follow one
//! that was cut off anywhere. A provision or start that fails is undone: what the attempt made is removed, and what
//! existed before stays.

mod delete;
mod plan;
mod provision;
mod start;
pub(super) mod step;
mod undo;

use std::sync::Arc;

use super::{leases::ActiveJob, provision_worker::ProvisionWorker};
use crate::core::queue::{claim::Claimed, job::JobKind};

/// Does the work of a job. Returns the runtime's id of the container, where the job leaves one.
///
/// # Errors
/// `Stopped` when the attempt must not go on; `Backend` with the error of the step that failed, after the undo.
pub(super) async fn perform(
    worker: &ProvisionWorker,
    job: &Claimed,
    active: &Arc<ActiveJob>,
) -> Result<Option<String>, step::JobError> {
    match job.kind {
        JobKind::Provision => undo::on_failure(worker, job, active, provision::perform(worker, job, active)).await,
        JobKind::Start => undo::on_failure(worker, job, active, start::perform(worker, job, active)).await,
        JobKind::Delete => delete::perform(worker, job, active).await.map(|()| None),
    }
}

/// Undoes an attempt that was cut off at its deadline.
pub(super) async fn undo_unfinished(worker: &ProvisionWorker, job: &Claimed, active: &Arc<ActiveJob>) {
    match job.kind {
        JobKind::Provision | JobKind::Start => undo::undo(worker, job, active).await,
        // A delete has no undo: its next attempt removes the rest.
        JobKind::Delete => {}
    }
}
