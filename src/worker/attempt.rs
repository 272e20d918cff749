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

use super::{
    ProvisionWorker,
    fault::Fault,
    jobs::{self, JobError},
    leases::{ActiveJob, StopReason},
    random::random_unit,
};
use crate::core::{
    db::DbError,
    instances::{Reason, ReasonCode},
    queue::{
        claim::Claimed,
        finish::{Outcome, finish},
        job::JobKind,
        rescue, retry,
    },
    text::CleanText,
};

/// While Postgres is away, how long until the end is written again.
const AGAIN: Duration = Duration::from_millis(500);
/// How long cleaning up after a deadline may take.
const UNDO: Duration = Duration::from_secs(30);

/// Does the job and writes how it ended. `release`: it is to be given back.
pub(super) async fn run(
    worker: &ProvisionWorker,
    job: &Claimed,
    claimed_at: Instant,
    active: &Arc<ActiveJob>,
    release: &CancellationToken,
) {
    let attempt = async {
        if let Some(outcome) = attempt(worker, job, active, release).await {
            end(worker, job, claimed_at, active, outcome).await;
        }
    };
    // What it shared is not left half changed: locks recover from poisoning, and files and rows are replaced whole.
    if let Err(panic) = AssertUnwindSafe(attempt).catch_unwind().await {
        let panic = CleanText::new(text_of(&*panic));
        tracing::error!(%panic, "the attempt panicked; counting it as a crash of the worker");
        crash(worker, job, active).await;
    }
}

/// One attempt. `None`: the lease is lost, nothing may be written.
async fn attempt(
    worker: &ProvisionWorker,
    job: &Claimed,
    active: &Arc<ActiveJob>,
    release: &CancellationToken,
) -> Option<Outcome> {
    if job.deletion_requested && job.kind != JobKind::Delete {
        return Some(Outcome::Superseded);
    }
    let deadline = worker.config.job_deadline;
    let started = Instant::now();
    let result = tokio::select! {
        result = tokio::time::timeout(deadline, jobs::perform(worker, job, active)) => result,
        () = active.lost.cancelled() => return None,
        () = release.cancelled() => return Some(Outcome::Retry { after: Duration::ZERO, reason: None, uses_attempt: false }),
    };
    let outcome = match result {
        Ok(Ok(container_id)) => Outcome::Succeeded { container_id: container_id.map(CleanText::from) },
        Ok(Err(JobError::Halted(StopReason::Lost))) => return None,
        Ok(Err(JobError::Halted(StopReason::Cancelled))) => Outcome::Cancelled,
        Ok(Err(JobError::Backend(error))) => after_fault(job, Fault::from(&error)),
        Err(_) => {
            tokio::select! {
                _ = tokio::time::timeout(UNDO, jobs::abandon(worker, job, active)) => {}
                () = active.lost.cancelled() => return None,
            }
            let detail = format!("the attempt took longer than {} s", deadline.as_secs()).into();
            after_fault(job, Fault::GiveUp(Reason { code: ReasonCode::DeadlineExceeded, detail }))
        }
    };
    metrics::histogram!("job_attempt_seconds", "kind" => job.kind.as_str()).record(started.elapsed());
    Some(outcome)
}

fn after_fault(job: &Claimed, fault: Fault) -> Outcome {
    let retry = |reason| Outcome::Retry {
        after: retry::backoff(job.attempt, random_unit()),
        reason: Some(reason),
        uses_attempt: true,
    };
    match fault {
        // A delete goes on until nothing is left.
        fault if job.kind == JobKind::Delete => retry(fault.cause()),
        Fault::Retry(cause) if !retry::exhausted(job.kind, job.attempt, job.max_attempts) => retry(cause),
        Fault::Retry(cause) | Fault::GiveUp(cause) => Outcome::Failed(cause),
    }
}

/// Writes that the attempt crashed.
async fn crash(worker: &ProvisionWorker, job: &Claimed, active: &Arc<ActiveJob>) {
    let is_written = loop {
        let result = rescue::rescue_crashed_job(&worker.db, job.lease, worker.config.times).await;
        if let Some(is_written) = settled(active, result).await {
            break is_written;
        }
    };
    if is_written {
        count(job, "crashed");
        // What comes next on the instance waited for this.
        worker.wakeups.after(Duration::ZERO);
    }
}

/// Writes how the attempt ended.
async fn end(
    worker: &ProvisionWorker,
    job: &Claimed,
    claimed_at: Instant,
    active: &Arc<ActiveJob>,
    mut outcome: Outcome,
) {
    let is_written = loop {
        let result = finish(&worker.db, job.lease, job.kind, &outcome, &active.steps.all()).await;
        if result.as_ref().is_err_and(DbError::is_about_the_data) {
            active.steps.drop_details();
            outcome.drop_details();
        }
        if let Some(is_written) = settled(active, result).await {
            break is_written;
        }
    };
    if !is_written {
        return;
    }
    let label = match &outcome {
        Outcome::Succeeded { .. } => "succeeded",
        Outcome::Failed(_) => "failed",
        Outcome::Retry { .. } => "retry",
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
            worker.leases.release(job.lease);
            // The observer ends only after the jobs.
            let _ = worker.look.send(job.lease.instance);
        }
        Outcome::Retry { after, reason, .. } => {
            tracing::info!(?reason, ?after, "will be tried again");
            worker.wakeups.after(after);
        }
        Outcome::Failed(reason) => tracing::info!(code = %reason.code, detail = %reason.detail, "failed"),
        Outcome::Cancelled | Outcome::Superseded => {
            tracing::info!(label, "ended");
            // What comes next on the instance waited for this.
            worker.wakeups.after(Duration::ZERO);
        }
        Outcome::Succeeded { container_id: None } => tracing::info!("done"),
    }
}

/// Whether the job's end was written; `None`, after a pause: it could not be, and the lease is still ours.
async fn settled(active: &ActiveJob, result: Result<bool, DbError>) -> Option<bool> {
    match result {
        Ok(true) => Some(true),
        Ok(false) => {
            tracing::warn!("the lease was lost before the job's end could be written");
            Some(false)
        }
        Err(error) => {
            tracing::warn!(%error, "could not write the job's end; trying again");
            tokio::select! {
                () = active.lost.cancelled() => Some(false),
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
