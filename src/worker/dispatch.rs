//! The dispatcher: claims jobs for the free slots, and runs each in a task of its own.
//!
//! It waits for a message from Redis, for a timer of a postponed job, or for its poll: every 2 s, or 0.5 s while Redis
//! is unavailable. So a message that is lost delays a job by about 2 s. A message says only that there may be work:
//! which jobs are claimed, Postgres decides. While jobs are left, the next claim follows as soon as a slot is free.
//!
//! A claim whose answer is lost may have succeeded. The dispatcher then looks for its jobs by the lease id, which no
//! other worker knows, until the leases would have expired.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, Span};

use super::{
    attempt,
    provision_worker::ProvisionWorker,
    watchdog::{LOOP_WAIT_MAX, LoopProgress},
};
use crate::{
    core::{
        db::DbError,
        id::LeaseId,
        queue::{
            claim::{self, Batch, ClaimRequest, Claimed, Lease},
            notify::{Subscriber, Wakeup},
            workers,
        },
        random::random_unit,
    },
    shutdown::{FAILED_PART_STATUS, Shutdown},
    telemetry,
};

const IDLE_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The poll while Redis is unavailable.
const DISCONNECTED_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The pause after a claim that failed.
const CLAIM_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// The shortest pause after a claim whose candidates were all locked by other hosts.
const CONTENTION_INTERVAL: Duration = Duration::from_millis(20);
/// How long a statement may run: the client's time limit and the server's.
const STATEMENT_TIMEOUT: Duration = Duration::from_millis(4500);

struct Dispatcher {
    worker: Arc<ProvisionWorker>,
    tasks: TaskTracker,
    slot_freed: Arc<Notify>,
    /// Whether Redis is unavailable.
    is_disconnected: Arc<AtomicBool>,
    /// Cancelled when running jobs are to be queued again.
    release: CancellationToken,
    progress: LoopProgress,
}

/// Claims and runs jobs until a shutdown is requested, then drains.
pub(super) async fn run(
    worker: &Arc<ProvisionWorker>,
    subscriber: Subscriber,
    (claiming, listening): (LoopProgress, LoopProgress),
    shutdown: &Shutdown,
) {
    let dispatcher = Dispatcher {
        worker: worker.clone(),
        tasks: TaskTracker::new(),
        slot_freed: Arc::default(),
        is_disconnected: Arc::default(),
        release: CancellationToken::new(),
        progress: claiming,
    };
    let (woken, mut wakeups) = mpsc::channel(1);
    let listener = Listener {
        worker: worker.clone(),
        subscriber,
        woken,
        slot_freed: dispatcher.slot_freed.clone(),
        is_disconnected: dispatcher.is_disconnected.clone(),
        progress: listening,
    };
    let listener = tokio::spawn(listener.run());
    // Jobs may have been queued while no worker ran, so the first claim waits for nothing.
    let mut claim_again = true;
    // Only the wait is cancelled by a shutdown: jobs of a claim that has been sent are always run.
    while let Some(()) = shutdown.requested.run_until_cancelled(dispatcher.wait(&mut wakeups, claim_again)).await {
        claim_again = dispatcher.claim_and_run().await;
    }
    listener.abort();
    dispatcher.drain(shutdown).await;
}

/// Reads messages from Redis. Takes at most as many as there are free slots, and the next ones only when the dispatcher
/// has handled these, so that the other messages wake other hosts.
struct Listener {
    worker: Arc<ProvisionWorker>,
    subscriber: Subscriber,
    woken: mpsc::Sender<()>,
    slot_freed: Arc<Notify>,
    is_disconnected: Arc<AtomicBool>,
    progress: LoopProgress,
}

impl Listener {
    async fn run(self) {
        loop {
            self.progress.advance();
            let free_slots = self.worker.identity.slots.saturating_sub(self.worker.leases.count());
            let permit = tokio::time::timeout(LOOP_WAIT_MAX, self.woken.reserve());
            let Ok(permit) = permit.await else { continue };
            let Ok(permit) = permit else { return };
            if free_slots == 0 {
                let _ = tokio::time::timeout(LOOP_WAIT_MAX, self.slot_freed.notified()).await;
                continue;
            }
            let wakeup = self.subscriber.recv(free_slots).await;
            self.is_disconnected.store(wakeup == Wakeup::Disconnected, Ordering::Relaxed);
            match wakeup {
                Wakeup::Jobs => permit.send(()),
                Wakeup::Disconnected => tokio::time::sleep(DISCONNECTED_POLL_INTERVAL).await,
                Wakeup::Timeout => {}
            }
        }
    }
}

/// The slot and the lease of a job, given up when its task ends, however it ends.
struct Slot {
    worker: Arc<ProvisionWorker>,
    lease: Lease,
    freed: Arc<Notify>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.worker.leases.remove(self.lease);
        // `notify_waiters` wakes the dispatcher and the listener where they wait, `notify_one` one that is about to
        // wait.
        self.freed.notify_waiters();
        self.freed.notify_one();
    }
}

impl Dispatcher {
    fn free_slots(&self) -> usize {
        self.worker.identity.slots.saturating_sub(self.worker.leases.count())
    }

    /// Waits until a slot is free, and then, unless `claim_again`, for a wake-up or the poll.
    async fn wait(&self, wakeups: &mut mpsc::Receiver<()>, claim_again: bool) {
        self.progress.advance();
        while self.free_slots() == 0 {
            let _ = tokio::time::timeout(LOOP_WAIT_MAX, self.slot_freed.notified()).await;
            self.progress.advance();
        }
        if claim_again {
            return;
        }
        let is_disconnected = self.is_disconnected.load(Ordering::Relaxed);
        let interval = if is_disconnected { DISCONNECTED_POLL_INTERVAL } else { IDLE_POLL_INTERVAL };
        tokio::select! {
            message = wakeups.recv() => if message.is_none() {
                // The listener has panicked. Without it every job would wait for a poll.
                tracing::error!("the task that reads wake-ups from Redis ended; this process ends");
                telemetry::exit(FAILED_PART_STATUS);
            },
            () = self.worker.timers.next_due() => {}
            () = tokio::time::sleep(interval.mul_f64(0.75 + 0.5 * random_unit())) => {}
        }
    }

    /// Claims jobs for all free slots and starts them. Returns whether to claim again as soon as a slot is free.
    async fn claim_and_run(&self) -> bool {
        let (claimed_at, free_slots) = (Instant::now(), self.free_slots());
        match self.claim(free_slots).await {
            Ok(batch) => {
                // With all slots taken, messages stay in Redis, and jobs may have come by the time a slot is free.
                let claim_again = batch.more || batch.jobs.len() == free_slots;
                if batch.jobs.is_empty() && batch.more {
                    // Other hosts had locked all candidates; the random pause keeps the hosts from colliding again.
                    tokio::time::sleep(CONTENTION_INTERVAL.mul_f64(1.0 + 2.0 * random_unit())).await;
                }
                for job in batch.jobs {
                    self.start(job, claimed_at);
                }
                claim_again
            }
            Err(error) => {
                tracing::warn!(%error, "could not claim jobs; trying again");
                tokio::time::sleep(CLAIM_RETRY_INTERVAL).await;
                true
            }
        }
    }

    async fn claim(&self, free_slots: usize) -> Result<Batch, DbError> {
        let worker = &self.worker;
        let times = worker.config.times;
        let request = ClaimRequest {
            worker: worker.identity,
            free_slots,
            lease: LeaseId::new(),
            lease_ttl: times.lease,
            job_deadline: worker.config.job_deadline,
        };
        let sent_at = Instant::now();
        match claim::claim(&worker.db, &request).await {
            Err(DbError::Unavailable(reason)) => {
                while sent_at.elapsed() < times.self_fence() {
                    tokio::time::sleep(CLAIM_RETRY_INTERVAL).await;
                    self.progress.advance();
                    match claim::recover(&worker.db, worker.identity, request.lease).await {
                        // No jobs yet. The statement may still run on the server, for as long as its time limit.
                        Ok(jobs) if jobs.is_empty() && sent_at.elapsed() < STATEMENT_TIMEOUT => {}
                        Ok(jobs) => return Ok(Batch { jobs, more: true }),
                        Err(_) => {}
                    }
                }
                Err(DbError::Unavailable(reason))
            }
            other => other,
        }
    }

    fn start(&self, job: Claimed, claimed_at: Instant) {
        let span = self.span(&job);
        let active = self.worker.leases.add(job.lease, claimed_at, span.clone());
        metrics::histogram!("job_wait_seconds", "kind" => job.kind.as_str()).record(job.waited);
        let slot = Slot { worker: self.worker.clone(), lease: job.lease, freed: self.slot_freed.clone() };
        let release = self.release.clone();
        let task = async move { attempt::run(&slot.worker, &job, claimed_at, &active, &release).await };
        self.tasks.spawn(task.instrument(span));
    }

    /// Returns the span of an attempt: every line about it carries these fields, and with `request_id` leads to the
    /// lines of the request that made the job. Not an `info_span`: with RUST_LOG=error they are needed as well.
    fn span(&self, job: &Claimed) -> Span {
        tracing::error_span!(
            "job",
            job = %job.lease.job,
            instance = %job.lease.instance,
            kind = %job.kind,
            attempt = job.attempt,
            host = self.worker.config.host.name,
            request_id = job.request_id.as_deref().map(tracing::field::display),
        )
    }

    async fn drain(self, shutdown: &Shutdown) {
        // The claiming loop has ended: the watchdog must not wait for it.
        drop(self.progress);
        self.tasks.close();
        if let Err(error) = workers::mark_draining(&self.worker.db, self.worker.identity).await {
            tracing::warn!(%error, "could not record that this worker drains; it drains all the same");
        }
        tokio::select! {
            () = self.tasks.wait() => return,
            () = tokio::time::sleep(self.worker.config.drain_timeout) => {}
            () = shutdown.forced.cancelled() => {}
        }
        tracing::warn!(
            jobs = self.worker.leases.count(),
            "jobs still run after the drain time-out; queueing them again"
        );
        self.release.cancel();
        self.tasks.wait().await;
    }
}
