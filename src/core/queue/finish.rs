//! Ending a job's attempt: one statement, guarded by token and lease id. Nothing happens when the lease is lost.
//!
//! An instance's status changes here and in the other statements of `protocol`, always by a `Transition`.

use std::time::Duration;

use serde_json::{Value, json};

use super::claim::Lease;
use crate::core::{
    db::{DbError, DualDb},
    instances::Transition,
    queue::job::{JobEvent, JobKind, JobStatus},
    text::CleanText,
};

/// A cause as the API names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub code: &'static str,
    pub detail: CleanText,
}

/// Every `code` of a job's error and of an instance's `status_reason`.
pub const CAUSES: [&str; 12] = [
    "image_not_found",
    "image_pull_failed",
    "name_conflict",
    "network_setup_failed",
    "port_conflict",
    "container_start_failed",
    "attempts_exhausted",
    "deadline_exceeded",
    "no_capacity",
    "container_exited",
    "crash_loop",
    "host_lost",
];

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With the runtime's id of the container, where there is one.
    Succeeded { container_id: Option<CleanText> },
    /// For good.
    Failed(Cause),
    /// Another attempt after `after`. `counts`: it uses one up.
    Again { after: Duration, cause: Option<Cause>, counts: bool },
    /// Its owner wanted it stopped.
    Cancelled,
    /// A newer intent made it pointless.
    Superseded,
}

impl Outcome {
    /// Replaces the cause's detail, which Postgres refused to store, by a fixed text.
    pub fn drop_details(&mut self) {
        if let Self::Failed(cause) = self {
            cause.detail = "the details could not be stored".into();
        }
    }

    fn event(&self) -> JobEvent {
        match self {
            Self::Succeeded { .. } => JobEvent::Succeeded,
            Self::Failed(_) => JobEvent::FailedForGood,
            Self::Again { .. } => JobEvent::Requeued,
            Self::Cancelled => JobEvent::CancelHonoured,
            Self::Superseded => JobEvent::Superseded,
        }
    }

    /// What it means for the instance; a retry changes nothing there.
    fn transition(&self, kind: JobKind) -> Option<Transition> {
        match self {
            Self::Succeeded { .. } => Some(Transition::Succeeded(kind)),
            Self::Failed(_) => Some(Transition::Failed(kind)),
            Self::Again { .. } | Self::Cancelled | Self::Superseded => None,
        }
    }

    fn cause(&self) -> Option<Value> {
        match self {
            Self::Failed(cause) => {
                debug_assert!(CAUSES.contains(&cause.code), "{} is not documented", cause.code);
                Some(json!({"code": cause.code, "detail": cause.detail}))
            }
            // What went wrong in an attempt that is not the last is told by its steps.
            _ => None,
        }
    }
}

/// Ends the attempt. `false`: the lease was lost, and nothing was written.
///
/// # Errors
/// As the database says; the statement may be repeated.
pub async fn finish(
    db: &DualDb,
    lease: Lease,
    kind: JobKind,
    outcome: &Outcome,
    steps: Value,
) -> Result<bool, DbError> {
    let status = JobStatus::Running.next(outcome.event()).unwrap_or(JobStatus::Failed);
    let (was, becomes) = outcome.transition(kind).map(Transition::table).unwrap_or_default();
    let container_id = match outcome {
        Outcome::Succeeded { container_id } => container_id.as_deref(),
        _ => None,
    };
    let (after, uncount) = match outcome {
        Outcome::Again { after, counts, .. } => (after.as_secs_f64(), i32::from(!counts)),
        _ => (0.0, 0),
    };
    let rows = db
        .write()
        .await?
        .query(
            "with inst as materialized (select id from instances where id = $1 for update),
             done as (
               -- A retry that its owner no longer wants would only keep the delete waiting.
               update jobs j set status = case when $5 = 'queued' and j.cancel_requested_at is not null then 'cancelled' else $5 end, steps = $6, error = $7,
                 attempt = greatest(0, j.attempt - $8), run_at = case when $5 = 'queued' then now() + make_interval(secs => $9) else j.run_at end,
                 lease_id = null, lease_boot = null, lease_until = null, deadline_at = null,
                 finished_at = case when $5 = 'queued' and j.cancel_requested_at is null then null else now() end
               from inst
               where j.id = $2 and j.instance_id = inst.id and j.status = 'running'
                 and j.lease_token = $3 and j.lease_id = $4
               returning j.id, j.instance_id, j.generation),
             changed as (
               update instances i set
                 status = t.becomes, updated_at = now(),
                 observed_generation = greatest(i.observed_generation, done.generation),
                 container_id = coalesce($10, i.container_id),
                 status_reason = case when t.becomes = 'failed' then $7 end,
                 started_at = case when t.becomes = 'running' then now() else i.started_at end,
                 exit_code = case when t.becomes = 'running' then null else i.exit_code end,
                 finished_at = case when t.becomes = 'running' then null
                                    when t.becomes in ('failed', 'deleted') then now() else i.finished_at end,
                 deleted_at = case when t.becomes = 'deleted' then now() end
               from done, unnest($11::text[], $12::text[]) as t (was, becomes)
               where i.id = done.instance_id and t.was = i.status
               returning i.id, i.tenant_id, i.status),
             address as (delete from addresses a using changed c where a.instance_id = c.id and c.status = 'deleted'),
             port as (delete from published_ports p using changed c where p.instance_id = c.id and c.status = 'deleted'),
             event as (
               insert into events (tenant_id, instance_id, job_id, kind, detail)
               select c.tenant_id, c.id, $2, 'instance.' || c.status, coalesce($7, '{}') from changed c)
             select 1 from done",
            &[
                &lease.instance.uuid(),
                &lease.job.uuid(),
                &lease.token,
                &lease.id.uuid(),
                &status.as_str(),
                &steps,
                &outcome.cause(),
                &uncount,
                &after,
                &container_id,
                &was,
                &becomes,
            ],
        )
        .await?;
    Ok(!rows.is_empty())
}
