//! One attempt of a job: done under its lease and deadline, judged, and written.
//!
//! An attempt that panics counts as a crash, as if the worker had died of it, and is written at once: its slot and its lease
//! are free again, and nothing else that the worker does is touched.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::{Context, fault::Fault, jobs::{self, JobError}, leases::{Halt, Held}, random::random_unit};
use crate::core::{db::DbError, queue::{claim::Claimed, finish::{Cause, Outcome, finish}, job::JobKind, rescue, retry}, text::CleanText};

/// While Postgres is away, how long until the end is written again.
const AGAIN: Duration = Duration::from_millis(500);
/// How long cleaning up after a deadline may take.
const UNDO: Duration = Duration::from_secs(30);

/// Does the job and writes how it ended. `release`: it is to be given back.
pub(super) async fn run(
    context: &Context,
    job: &Claimed,
    claimed_at: Instant,
    held: &Arc<Held>,
    release: &CancellationToken,
) {
    let attempt = async {
        if let Some(outcome) = attempt(context, job, held, release).await {
            end(context, job, claimed_at, held, outcome).await;
        }
    };
    // What it shared is not left half changed: locks recover from poisoning, and files and rows are replaced whole.
    if let Err(panic) = AssertUnwindSafe(attempt).catch_unwind().await {
        let panic = CleanText::new(text_of(&*panic));
        tracing::error!(%panic, "the attempt panicked; counting it as a crash of the worker");
        crash(context, job, held).await;
    }
}

/// One attempt. `None`: the lease is lost, nothing may be written.
async fn attempt(context: &Context, job: &Claimed, held: &Arc<Held>, release: &CancellationToken) -> Option<Outcome> {
    if job.unwanted && job.kind != JobKind::Delete {
        return Some(Outcome::Superseded);
    }
    let deadline = context.config.times.job_deadline;
    let started = Instant::now();
    let result = tokio::select! {
        result = tokio::time::timeout(deadline, jobs::perform(context, job, held)) => result,
        () = held.lost.cancelled() => return None,
        () = release.cancelled() => return Some(Outcome::Again { after: Duration::ZERO, cause: None, counts: false }),
    };
    let outcome = match result {
        Ok(Ok(container_id)) => Outcome::Succeeded { container_id: container_id.map(CleanText::from) },
        Ok(Err(JobError::Halted(Halt::Lost))) => return None,
        Ok(Err(JobError::Halted(Halt::Cancelled))) => Outcome::Cancelled,
        Ok(Err(JobError::Backend(error))) => after_fault(job, Fault::from(&error)),
        Err(_) => {
            tokio::select! {
                _ = tokio::time::timeout(UNDO, jobs::abandon(context, job, held)) => {}
                () = held.lost.cancelled() => return None,
            }
            let detail = format!("the attempt took longer than {} s", deadline.as_secs()).into();
            after_fault(job, Fault::GiveUp(Cause { code: "deadline_exceeded", detail }))
        }
    };
    metrics::histogram!("job_attempt_seconds", "kind" => job.kind.as_str()).record(started.elapsed());
    Some(outcome)
}

fn after_fault(job: &Claimed, fault: Fault) -> Outcome {
    let retry =
        |cause| Outcome::Again { after: retry::backoff(job.attempt, random_unit()), cause: Some(cause), counts: true };
    match fault {
        // A delete goes on until nothing is left.
        fault if job.kind == JobKind::Delete => retry(fault.cause()),
        Fault::Retry(cause) if !retry::exhausted(job.kind, job.attempt, job.max_attempts) => retry(cause),
        Fault::Retry(cause) | Fault::GiveUp(cause) => Outcome::Failed(cause),
    }
}

/// Writes that the attempt crashed.
async fn crash(context: &Context, job: &Claimed, held: &Arc<Held>) {
    let is_written = loop {
        let result = rescue::crashed(&context.db, job.lease, context.config.times.lease).await;
        if let Some(is_written) = settled(held, result).await {
            break is_written;
        }
    };
    if is_written {
        count(job, "crashed");
        // What comes next on the instance waited for this.
        context.wakeups.after(Duration::ZERO);
    }
}

/// Writes how the attempt ended.
async fn end(context: &Context, job: &Claimed, claimed_at: Instant, held: &Arc<Held>, mut outcome: Outcome) {
    let is_written = loop {
        let result = finish(&context.db, job.lease, job.kind, &outcome, held.steps.all()).await;
        if result.as_ref().is_err_and(DbError::is_about_the_data) {
            held.steps.drop_details();
            outcome.drop_details();
        }
        if let Some(is_written) = settled(held, result).await {
            break is_written;
        }
    };
    if !is_written {
        return;
    }
    let label = match &outcome {
        Outcome::Succeeded { .. } => "succeeded",
        Outcome::Failed(_) => "failed",
        Outcome::Again { .. } => "again",
        Outcome::Cancelled => "cancelled",
        Outcome::Superseded => "superseded",
    };
    count(job, label);
    match outcome {
        // Its process may have ended before the instance showed `running`.
        Outcome::Succeeded { container_id: Some(_) } => {
            tracing::info!("running");
            if job.kind == JobKind::Provision {
                metrics::histogram!("instance_provisioning_seconds").record(job.age + claimed_at.elapsed());
            }
            // First: the observer leaves alone what is held.
            context.leases.release(job.lease);
            // The observer ends only after the jobs.
            let _ = context.look.send(job.lease.instance);
        }
        Outcome::Again { after, cause, .. } => {
            tracing::info!(?cause, ?after, "will be tried again");
            context.wakeups.after(after);
        }
        Outcome::Failed(cause) => tracing::info!(code = cause.code, detail = %cause.detail, "failed"),
        Outcome::Cancelled | Outcome::Superseded => {
            tracing::info!(label, "ended");
            // What comes next on the instance waited for this.
            context.wakeups.after(Duration::ZERO);
        }
        Outcome::Succeeded { container_id: None } => tracing::info!("done"),
    }
}

/// Whether the job's end was written; `None`, after a pause: it could not be, and the lease is still ours.
async fn settled(held: &Held, result: Result<bool, DbError>) -> Option<bool> {
    match result {
        Ok(true) => Some(true),
        Ok(false) => {
            tracing::warn!("the lease was lost before the job's end could be written");
            Some(false)
        }
        Err(error) => {
            tracing::warn!(%error, "could not write the job's end; trying again");
            tokio::select! {
                () = held.lost.cancelled() => Some(false),
                () = tokio::time::sleep(AGAIN) => None,
            }
        }
    }
}

fn count(job: &Claimed, outcome: &'static str) {
    metrics::counter!("jobs_ended_total", "kind" => job.kind.as_str(), "outcome" => outcome).increment(1);
}

/// What a panic says.
fn text_of(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
