//! One attempt of a job: runs it under its lease and its deadline, and writes how it ended.
//!
//! | what happens | what is written |
//! |---|---|
//! | the work is done | `Succeeded` |
//! | a backend fails, or the deadline passes | `Retry` or `Failed`, by `fault` and the attempts that are left |
//! | the owner deletes the instance | `Superseded` before the work began, `Cancelled` after its undo |
//! | the worker drains, and the job does not finish in time | `Retry` that uses no attempt |
//! | the attempt panics | a crash, as if the worker had died, but at once: slot and lease are free again |
//! | the lease is lost | nothing: another worker may hold the job |
//!
//! While Postgres is unavailable the end is written again and again, until it succeeds or the lease is lost.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::{
    fault::Fault,
    jobs::{self, step::JobError},
    leases::{ActiveJob, StopReason},
    provision_worker::ProvisionWorker,
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
    random::random_unit,
    text::CleanText,
};

/// The pause before the end of an attempt is written again.
const FINISH_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long the undo of an attempt may take whose deadline has passed.
const UNDO_TIMEOUT: Duration = Duration::from_secs(30);

/// How an attempt ended, for the log.
struct Ended {
    outcome: &'static str,
    reason: Option<Reason>,
    retry_after: Option<Duration>,
}

impl Ended {
    fn new(outcome: &'static str) -> Self {
        Self { outcome, reason: None, retry_after: None }
    }

    fn lease_lost() -> Self {
        Self::new("lease_lost")
    }
}

/// Runs the job and writes how it ended. `release`: the job is to be queued again.
pub(super) async fn run(
    worker: &ProvisionWorker,
    job: &Claimed,
    claimed_at: Instant,
    active: &Arc<ActiveJob>,
    release: &CancellationToken,
) {
    let started = Instant::now();
    tracing::info!(waited_ms = milliseconds(job.waited), "claimed job");
    let attempt = async {
        match perform(worker, job, active, release).await {
            Some(outcome) => write_end(worker, job, claimed_at, active, outcome).await,
            None => Ended::lease_lost(),
        }
    };
    // A panic leaves nothing half changed that others share: locks protect single assignments, and files and rows are
    // replaced whole.
    let ended = match AssertUnwindSafe(attempt).catch_unwind().await {
        Ok(ended) => ended,
        Err(panic) => {
            let panic = CleanText::new(panic_message(&*panic));
            tracing::error!(%panic, "attempt panicked; recording it as a crash of the worker");
            write_crash(worker, job, active).await
        }
    };
    tracing::info!(
        outcome = ended.outcome,
        duration_ms = milliseconds(started.elapsed()),
        code = ended.reason.as_ref().map(|reason| reason.code.as_str()),
        detail = ended.reason.as_ref().map(|reason| tracing::field::display(&reason.detail)),
        retry_after_ms = ended.retry_after.map(milliseconds),
        "finished job"
    );
}

/// Does the work. Returns `None` when the lease is lost: nothing may be written then.
async fn perform(
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
        () = release.cancelled() => {
            return Some(Outcome::Retry { after: Duration::ZERO, reason: None, uses_attempt: false });
        }
    };
    let outcome = match result {
        Ok(Ok(container_id)) => Outcome::Succeeded { container_id: container_id.map(CleanText::from) },
        Ok(Err(JobError::Stopped(StopReason::LeaseLost))) => return None,
        Ok(Err(JobError::Stopped(StopReason::Cancelled))) => Outcome::Cancelled,
        Ok(Err(JobError::Backend(error))) => outcome_of_fault(job, Fault::from(&error)),
        Err(_) => {
            tracing::warn!(deadline_s = deadline.as_secs(), "attempt exceeded its deadline; undoing it");
            tokio::select! {
                _ = tokio::time::timeout(UNDO_TIMEOUT, jobs::undo_unfinished(worker, job, active)) => {}
                () = active.lost.cancelled() => return None,
            }
            let detail = format!("the attempt took longer than {} s", deadline.as_secs());
            outcome_of_fault(job, Fault::GiveUp(Reason::new(ReasonCode::DeadlineExceeded, detail)))
        }
    };
    metrics::histogram!("job_attempt_seconds", "kind" => job.kind.as_str()).record(started.elapsed());
    Some(outcome)
}

fn outcome_of_fault(job: &Claimed, fault: Fault) -> Outcome {
    let retry = |reason| Outcome::Retry {
        after: retry::backoff(job.attempt, random_unit()),
        reason: Some(reason),
        uses_attempt: true,
    };
    match fault {
        // A delete is retried without a limit, whatever the error: otherwise its container would stay for good.
        fault if job.kind == JobKind::Delete => retry(fault.into_reason()),
        Fault::Retry(reason) if !retry::exhausted(job.kind, job.attempt, job.max_attempts) => retry(reason),
        Fault::Retry(reason) | Fault::GiveUp(reason) => Outcome::Failed(reason),
    }
}

/// Writes that the attempt crashed.
async fn write_crash(worker: &ProvisionWorker, job: &Claimed, active: &Arc<ActiveJob>) -> Ended {
    let is_written = loop {
        let result = rescue::rescue_crashed_job(&worker.db, job.lease, worker.config.times).await;
        if let Some(is_written) = settled(active, result).await {
            break is_written;
        }
    };
    if !is_written {
        return Ended::lease_lost();
    }
    count_end(job, "crashed");
    // The next job of the instance can be claimed now.
    worker.timers.wake_after(Duration::ZERO);
    Ended::new("crashed")
}

/// Writes the outcome of the attempt and wakes the tasks that wait for its end.
async fn write_end(
    worker: &ProvisionWorker,
    job: &Claimed,
    claimed_at: Instant,
    active: &Arc<ActiveJob>,
    mut outcome: Outcome,
) -> Ended {
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
        return Ended::lease_lost();
    }
    let name = match &outcome {
        Outcome::Succeeded { .. } => "succeeded",
        Outcome::Failed(_) => "failed",
        Outcome::Retry { .. } => "retry",
        Outcome::Cancelled => "cancelled",
        Outcome::Superseded => "superseded",
    };
    count_end(job, name);
    let ended = Ended::new(name);
    match outcome {
        Outcome::Succeeded { container_id: Some(_) } => {
            if job.kind == JobKind::Provision {
                metrics::histogram!("instance_provisioning_seconds").record(job.age + claimed_at.elapsed());
            }
            // The process may have ended before the row said `running`, and then no event comes any more. Released
            // first, since instances with an active job are not reconciled. An error means that the worker is stopping.
            worker.leases.remove(job.lease);
            let _ = worker.reconcile_requests.send(job.lease.instance);
            ended
        }
        Outcome::Succeeded { container_id: None } => ended,
        Outcome::Retry { after, reason, .. } => {
            worker.timers.wake_after(after);
            Ended { reason, retry_after: Some(after), ..ended }
        }
        Outcome::Failed(reason) => Ended { reason: Some(reason), ..ended },
        Outcome::Cancelled | Outcome::Superseded => {
            // The next job of the instance can be claimed now.
            worker.timers.wake_after(Duration::ZERO);
            ended
        }
    }
}

/// Returns whether the end was written: `false` when the lease was lost. Returns `None`, after a pause, when Postgres
/// could not write it and the lease is still held.
async fn settled(active: &ActiveJob, result: Result<bool, DbError>) -> Option<bool> {
    match result {
        Ok(true) => Some(true),
        Ok(false) => {
            tracing::warn!("lease lost before the job's end was written; nothing is written");
            Some(false)
        }
        Err(error) => {
            tracing::warn!(%error, "could not write the job's end; trying again");
            tokio::select! {
                () = active.lost.cancelled() => Some(false),
                () = tokio::time::sleep(FINISH_RETRY_INTERVAL) => None,
            }
        }
    }
}

fn count_end(job: &Claimed, outcome: &'static str) {
    metrics::counter!("jobs_ended_total", "kind" => job.kind.as_str(), "outcome" => outcome).increment(1);
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
