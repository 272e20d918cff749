//! Ending an attempt of a job: one statement (`finish.sql`) changes the job and its instance together.
//!
//! The statement is guarded by the lease's token and id: when the lease is lost, it changes nothing. The instance's
//! next status is that of a `Transition`, so that the statement holds no table of its own.

use std::time::Duration;

use tokio_postgres::types::Json;

use super::claim::Lease;
use crate::core::{
    db::{DbError, DualDb},
    instances::{Reason, Transition},
    queue::{
        job::{JobEvent, JobKind, JobStatus},
        step::Step,
    },
    text::CleanText,
};

const FINISH: &str = include_str!("finish.sql");

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The work is done.
    Succeeded {
        /// The runtime's id of the container, where there is one.
        container_id: Option<CleanText>,
    },
    /// The job has failed and is not tried again.
    Failed(Reason),
    /// The job is queued again.
    Retry {
        /// How long until it is due.
        after: Duration,
        /// The error of this attempt; `None`: the worker gave the job back.
        reason: Option<Reason>,
        /// Whether this attempt counts towards `max_attempts`.
        uses_attempt: bool,
    },
    /// The attempt stopped because the owner has deleted the instance.
    Cancelled,
    /// A newer job of the instance made this one pointless before it began.
    Superseded,
}

impl Outcome {
    /// Replaces the reason's detail, which Postgres refused to store, by a fixed text.
    pub fn drop_details(&mut self) {
        if let Self::Failed(reason) = self {
            reason.detail = "the details could not be stored".into();
        }
    }

    fn event(&self) -> JobEvent {
        match self {
            Self::Succeeded { .. } => JobEvent::Succeeded,
            Self::Failed(_) => JobEvent::FailedForGood,
            Self::Retry { .. } => JobEvent::Requeued,
            Self::Cancelled => JobEvent::CancelHonoured,
            Self::Superseded => JobEvent::Superseded,
        }
    }

    /// Returns what happens to the instance; a retry changes nothing there.
    fn transition(&self, kind: JobKind) -> Option<Transition> {
        match self {
            Self::Succeeded { .. } => Some(Transition::Succeeded(kind)),
            Self::Failed(_) => Some(Transition::Failed(kind)),
            Self::Retry { .. } | Self::Cancelled | Self::Superseded => None,
        }
    }

    /// Returns the reason that the job and its instance show. The error of an attempt that is retried is in its steps.
    fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Failed(reason) => Some(reason),
            Self::Succeeded { .. } | Self::Retry { .. } | Self::Cancelled | Self::Superseded => None,
        }
    }
}

/// Ends the attempt and writes its steps. Returns `false` when the lease was lost; nothing was written then.
///
/// # Errors
/// `Unavailable`, `ReadOnly`, `Locked` or `RolledBack`: the statement may be repeated. `Statement`: Postgres refused
/// the data (`DbError::is_about_the_data`), or a bug.
pub async fn finish(
    db: &DualDb,
    lease: Lease,
    kind: JobKind,
    outcome: &Outcome,
    steps: &[Step],
) -> Result<bool, DbError> {
    let status = JobStatus::Running.next(outcome.event()).unwrap_or(JobStatus::Failed);
    let (from, to) = outcome.transition(kind).map(Transition::table).unwrap_or_default();
    let container_id = match outcome {
        Outcome::Succeeded { container_id } => container_id.as_deref(),
        _ => None,
    };
    let (retry_after, attempts_returned) = match outcome {
        Outcome::Retry { after, uses_attempt, .. } => (*after, i32::from(!uses_attempt)),
        _ => (Duration::ZERO, 0),
    };
    let rows = db
        .write()
        .await?
        .query(
            FINISH,
            &[
                &lease.instance,
                &lease.job,
                &lease.token,
                &lease.id,
                &status,
                &Json(steps),
                &outcome.reason().map(Json),
                &attempts_returned,
                &retry_after.as_secs_f64(),
                &container_id,
                &from,
                &to,
            ],
        )
        .await?;
    Ok(!rows.is_empty())
}
