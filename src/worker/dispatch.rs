//! Claiming and running: one claimer for the whole worker, one task per job.
//!
//! Woken by the bell, by a slot that frees while there is a backlog, by a job of ours that becomes due, and by a poll:
//! 2 s when idle, 0.5 s while Redis is away. So a lost bell costs at most 2 s.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use super::{
    Context,
    fault::Fault,
    jobs::{self, JobError},
    leases::{Halt, Held},
};
use crate::{
    core::{
        db::DbError,
        id::{JobId, LeaseId},
        jobs::retry,
        kind::JobKind,
        protocol::{
            boot,
            claim::{self, Candidates, Claimed},
            finish::{Cause, Outcome, finish},
        },
        queue::{Ear, Heard},
    },
    shutdown::Shutdown,
};

const IDLE_POLL: Duration = Duration::from_secs(2);
const DEAF_POLL: Duration = Duration::from_millis(500);

struct Dispatch {
    context: Arc<Context>,
    tasks: TaskTracker,
    slot_freed: Arc<Notify>,
    deaf: Arc<AtomicBool>,
    /// Running jobs are given back.
    release: CancellationToken,
}

pub(super) async fn run(context: &Arc<Context>, ear: Ear, shutdown: &Shutdown) {
    let dispatch = Dispatch {
        context: context.clone(),
        tasks: TaskTracker::new(),
        slot_freed: Arc::default(),
        deaf: Arc::default(),
        release: CancellationToken::new(),
    };
    let (heard, mut rung) = mpsc::channel(1);
    let listener =
        tokio::spawn(listen(context.clone(), ear, heard, dispatch.slot_freed.clone(), dispatch.deaf.clone()));
    let claiming = async {
        // What waited while nobody worked.
        let mut backlog = true;
        loop {
            let candidates = dispatch.next_candidates(&mut rung, backlog).await;
            backlog = dispatch.claim_and_run(candidates).await;
        }
    };
    shutdown.requested.run_until_cancelled(claiming).await;
    listener.abort();
    dispatch.drain(shutdown).await;
}

/// Pops only what there are slots for, so that other hosts get the rest.
async fn listen(
    context: Arc<Context>,
    ear: Ear,
    heard: mpsc::Sender<Vec<JobId>>,
    slot_freed: Arc<Notify>,
    deaf: Arc<AtomicBool>,
) {
    loop {
        let free = context.me.slots.saturating_sub(context.leases.count());
        if free == 0 {
            slot_freed.notified().await;
            continue;
        }
        let outcome = ear.listen(free).await;
        deaf.store(outcome == Heard::Deaf, Ordering::Relaxed);
        match outcome {
            Heard::Jobs(ids) => {
                if heard.send(ids).await.is_err() {
                    return;
                }
            }
            Heard::Deaf => tokio::time::sleep(DEAF_POLL).await,
            Heard::Silence => {}
        }
    }
}

impl Dispatch {
    fn free(&self) -> usize {
        self.context.me.slots.saturating_sub(self.context.leases.count())
    }

    async fn next_candidates(&self, rung: &mut mpsc::Receiver<Vec<JobId>>, backlog: bool) -> Candidates {
        while self.free() == 0 {
            self.slot_freed.notified().await;
        }
        if backlog {
            return Candidates::Next;
        }
        let period = if self.deaf.load(Ordering::Relaxed) { DEAF_POLL } else { IDLE_POLL };
        tokio::select! {
            Some(ids) = rung.recv() => Candidates::Rung(ids),
            () = self.context.wakeups.next() => Candidates::Next,
            () = tokio::time::sleep(period.mul_f64(0.75 + 0.5 * random_unit())) => Candidates::Next,
        }
    }

    /// Whether there may be more to claim.
    async fn claim_and_run(&self, candidates: Candidates) -> bool {
        let free = self.free();
        let wanted = match &candidates {
            Candidates::Rung(ids) => ids.len(),
            Candidates::Next => 1,
        };
        let claimed_at = Instant::now();
        let jobs = match self.claim(&candidates, free).await {
            Ok(jobs) => jobs,
            Err(error) => {
                tracing::warn!(%error, "could not claim");
                tokio::time::sleep(DEAF_POLL).await;
                return true;
            }
        };
        let count = jobs.len();
        for job in jobs {
            self.start(job, claimed_at);
        }
        match candidates {
            // Some were not for us, or not due, or there was no room: look once at what is next.
            Candidates::Rung(_) => count < wanted,
            Candidates::Next => count > 0,
        }
    }

    async fn claim(&self, candidates: &Candidates, free: usize) -> Result<Vec<Claimed>, DbError> {
        let (context, lease) = (&self.context, LeaseId::new());
        let times = context.config.times;
        let sent_at = Instant::now();
        let result =
            claim::claim(&context.db, context.me, candidates, free, lease, (times.lease, times.job_deadline)).await;
        match result {
            Err(DbError::Unavailable(reason)) => {
                // It may have been done: ask by the id that only we know, until the lease would be over.
                while sent_at.elapsed() < times.self_fence() {
                    tokio::time::sleep(DEAF_POLL).await;
                    if let Ok(jobs) = claim::recover(&context.db, context.me, lease).await {
                        return Ok(jobs);
                    }
                }
                Err(DbError::Unavailable(reason))
            }
            other => other,
        }
    }

    fn start(&self, job: Claimed, claimed_at: Instant) {
        let held = self.context.leases.hold(job.lease, claimed_at);
        let (context, slot_freed, release) = (self.context.clone(), self.slot_freed.clone(), self.release.clone());
        let span = tracing::info_span!("job", id = %job.lease.job, kind = %job.kind, instance = %job.lease.instance);
        self.tasks.spawn(
            async move {
                let outcome = attempt(&context, &job, &held, &release).await;
                if let Some(outcome) = outcome {
                    end(&context, &job, &held, outcome).await;
                }
                context.leases.release(job.lease.job);
                // Both may wait for it: the claimer and the listener.
                slot_freed.notify_waiters();
                slot_freed.notify_one();
            }
            .instrument(span),
        );
    }

    async fn drain(&self, shutdown: &Shutdown) {
        self.tasks.close();
        if let Err(error) = boot::draining(&self.context.db, self.context.me).await {
            tracing::warn!(%error, "could not say that this worker drains");
        }
        tokio::select! {
            () = self.tasks.wait() => return,
            () = tokio::time::sleep(self.context.config.drain_timeout) => {}
            () = shutdown.forced.cancelled() => {}
        }
        tracing::warn!(jobs = self.context.leases.count(), "giving running jobs back");
        self.release.cancel();
        self.tasks.wait().await;
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
        Ok(Ok(container_id)) => Outcome::Succeeded { container_id },
        Ok(Err(JobError::Halted(Halt::Lost))) => return None,
        Ok(Err(JobError::Halted(Halt::Cancelled))) => Outcome::Cancelled,
        Ok(Err(JobError::Backend(error))) => after_fault(job, Fault::from(&error)),
        Err(_) => after_fault(
            job,
            Fault::GiveUp(Cause {
                code: "deadline_exceeded",
                detail: format!("the attempt took longer than {} s", deadline.as_secs()),
            }),
        ),
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

/// Writes how the attempt ended, trying as long as the lease lasts.
async fn end(context: &Context, job: &Claimed, held: &Arc<Held>, outcome: Outcome) {
    let steps = held.steps.all();
    loop {
        match finish(&context.db, job.lease, job.kind, &outcome, steps.clone()).await {
            Ok(true) => break,
            Ok(false) => {
                tracing::warn!("the lease was lost before the job's end could be written");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "could not write the job's end; trying again");
                tokio::select! {
                    () = held.lost.cancelled() => return,
                    () = tokio::time::sleep(DEAF_POLL) => {}
                }
            }
        }
    }
    let label = match &outcome {
        Outcome::Succeeded { .. } => "succeeded",
        Outcome::Failed(_) => "failed",
        Outcome::Again { .. } => "again",
        Outcome::Cancelled => "cancelled",
        Outcome::Superseded => "superseded",
    };
    metrics::counter!("jobs_ended_total", "kind" => job.kind.as_str(), "outcome" => label).increment(1);
    match outcome {
        // Its process may have ended before the instance showed `running`.
        Outcome::Succeeded { container_id: Some(_) } => {
            tracing::info!("running");
            // The observer ends only after the jobs.
            let _ = context.look.send(job.lease.instance);
        }
        Outcome::Again { after, cause, .. } => {
            tracing::info!(?cause, ?after, "will be tried again");
            context.wakeups.after(after);
        }
        Outcome::Failed(cause) => tracing::info!(code = cause.code, detail = cause.detail, "failed"),
        Outcome::Cancelled | Outcome::Superseded => {
            tracing::info!(label, "ended");
            // What comes next on the instance waited for this.
            context.wakeups.after(Duration::ZERO);
        }
        Outcome::Succeeded { container_id: None } => tracing::info!("done"),
    }
}

/// Uniform in 0..1.
fn random_unit() -> f64 {
    f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX)
}
