//! Claiming and running: one claimer for the whole worker, one task per job.
//!
//! The claimer waits for a message from Redis, for a job of ours that becomes due, or for its poll: 2 s when idle, 0.5 s
//! while Redis is away; so a lost message costs about 2 s. A message only says that it is time to claim: which jobs are
//! claimed, Postgres decides. While jobs are left, the next claim follows at once, or as soon as a slot is free.

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
    ProvisionWorker, attempt,
    random::random_unit,
    watchdog::{LONGEST_WAIT, Pulse},
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
    },
    shutdown::{FAILED_PART_STATUS, Shutdown},
    telemetry,
};

const IDLE_POLL: Duration = Duration::from_secs(2);
/// How long a claim waits, at least, whose candidates were all locked by others.
const CONTENTION_PAUSE: Duration = Duration::from_millis(20);
const DEAF_POLL: Duration = Duration::from_millis(500);
/// Our own time limit of a statement, and the server's.
const STATEMENT: Duration = Duration::from_millis(4500);

struct Dispatch {
    worker: Arc<ProvisionWorker>,
    tasks: TaskTracker,
    slot_freed: Arc<Notify>,
    deaf: Arc<AtomicBool>,
    /// Running jobs are given back.
    release: CancellationToken,
    pulse: Pulse,
}

pub(super) async fn run(
    worker: &Arc<ProvisionWorker>,
    subscriber: Subscriber,
    (claiming_pulse, listening_pulse): (Pulse, Pulse),
    shutdown: &Shutdown,
) {
    let dispatch = Dispatch {
        worker: worker.clone(),
        tasks: TaskTracker::new(),
        slot_freed: Arc::default(),
        deaf: Arc::default(),
        release: CancellationToken::new(),
        pulse: claiming_pulse,
    };
    let (woken, mut wakeups) = mpsc::channel(1);
    let listener = Listener {
        worker: worker.clone(),
        subscriber,
        woken,
        slot_freed: dispatch.slot_freed.clone(),
        deaf: dispatch.deaf.clone(),
        pulse: listening_pulse,
    };
    let listener = tokio::spawn(listener.run());
    // What waited while nobody worked.
    let mut backlog = true;
    // Only the wait is cut short: a claim under way is always followed by its jobs.
    while let Some(()) = shutdown.requested.run_until_cancelled(dispatch.wait(&mut wakeups, backlog)).await {
        backlog = dispatch.claim_and_run().await;
    }
    listener.abort();
    dispatch.drain(shutdown).await;
}

/// Reads messages from Redis. Takes only as many as there are slots for, and the next ones when the claimer has begun with
/// these, so that the rest wakes other hosts.
struct Listener {
    worker: Arc<ProvisionWorker>,
    subscriber: Subscriber,
    woken: mpsc::Sender<()>,
    slot_freed: Arc<Notify>,
    deaf: Arc<AtomicBool>,
    pulse: Pulse,
}

impl Listener {
    async fn run(self) {
        loop {
            self.pulse.beat();
            let free = self.worker.me.slots.saturating_sub(self.worker.leases.count());
            let room = tokio::time::timeout(LONGEST_WAIT, self.woken.reserve());
            let Ok(room) = room.await else { continue };
            let Ok(room) = room else { return };
            if free == 0 {
                let _ = tokio::time::timeout(LONGEST_WAIT, self.slot_freed.notified()).await;
                continue;
            }
            let outcome = self.subscriber.recv(free).await;
            self.deaf.store(outcome == Wakeup::Disconnected, Ordering::Relaxed);
            match outcome {
                Wakeup::Jobs => room.send(()),
                Wakeup::Disconnected => tokio::time::sleep(DEAF_POLL).await,
                Wakeup::Timeout => {}
            }
        }
    }
}

/// A job's slot and lease, given up however its task ends.
struct Slot {
    worker: Arc<ProvisionWorker>,
    lease: Lease,
    freed: Arc<Notify>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.worker.leases.release(self.lease);
        // Both may wait for it: the claimer and the listener.
        self.freed.notify_waiters();
        self.freed.notify_one();
    }
}

impl Dispatch {
    fn free(&self) -> usize {
        self.worker.me.slots.saturating_sub(self.worker.leases.count())
    }

    /// Returns when there is a free slot and a reason to claim.
    async fn wait(&self, wakeups: &mut mpsc::Receiver<()>, backlog: bool) {
        self.pulse.beat();
        while self.free() == 0 {
            let _ = tokio::time::timeout(LONGEST_WAIT, self.slot_freed.notified()).await;
            self.pulse.beat();
        }
        if backlog {
            return;
        }
        let period = if self.deaf.load(Ordering::Relaxed) { DEAF_POLL } else { IDLE_POLL };
        tokio::select! {
            message = wakeups.recv() => if message.is_none() {
                // It has panicked. Without it every job would wait for a poll.
                tracing::error!("the task that listens to Redis has ended; this process ends");
                telemetry::exit(FAILED_PART_STATUS);
            },
            () = self.worker.wakeups.next() => {}
            () = tokio::time::sleep(period.mul_f64(0.75 + 0.5 * random_unit())) => {}
        }
    }

    /// Claims for all free slots. Answers whether to claim again as soon as one is free.
    async fn claim_and_run(&self) -> bool {
        let (claimed_at, free) = (Instant::now(), self.free());
        match self.claim(free).await {
            Ok(batch) => {
                // With all slots taken, messages stay in Redis, and jobs may have come by the time one is free.
                let again = batch.more || batch.jobs.len() == free;
                if batch.jobs.is_empty() && batch.more {
                    // Another host is claiming all that this one chose; not in step with it the next time.
                    tokio::time::sleep(CONTENTION_PAUSE.mul_f64(1.0 + 2.0 * random_unit())).await;
                }
                for job in batch.jobs {
                    self.start(job, claimed_at);
                }
                again
            }
            Err(error) => {
                tracing::warn!(%error, "could not claim");
                tokio::time::sleep(DEAF_POLL).await;
                true
            }
        }
    }

    async fn claim(&self, free: usize) -> Result<Batch, DbError> {
        let (worker, lease) = (&self.worker, LeaseId::new());
        let times = worker.config.times;
        let request = ClaimRequest {
            worker: worker.me,
            free_slots: free,
            lease,
            lease_ttl: times.lease,
            job_deadline: worker.config.job_deadline,
        };
        let sent_at = Instant::now();
        match claim::claim(&worker.db, &request).await {
            Err(DbError::Unavailable(reason)) => {
                // It may have been done: ask by the id that only we know, until the lease would be over.
                while sent_at.elapsed() < times.self_fence() {
                    tokio::time::sleep(DEAF_POLL).await;
                    self.pulse.beat();
                    match claim::recover(&worker.db, worker.me, lease).await {
                        // Nothing yet: the server may still be at it, as long as it lets a statement run.
                        Ok(jobs) if jobs.is_empty() && sent_at.elapsed() < STATEMENT => {}
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
        let active = self.worker.leases.hold(job.lease, claimed_at);
        metrics::histogram!("job_wait_seconds", "kind" => job.kind.as_str()).record(job.waited);
        let slot = Slot { worker: self.worker.clone(), lease: job.lease, freed: self.slot_freed.clone() };
        let release = self.release.clone();
        let span = tracing::info_span!("job", id = %job.lease.job, kind = %job.kind, instance = %job.lease.instance);
        self.tasks.spawn(
            async move {
                attempt::run(&slot.worker, &job, claimed_at, &active, &release).await;
            }
            .instrument(span),
        );
    }

    async fn drain(self, shutdown: &Shutdown) {
        // Nothing is claimed any more: nothing to watch.
        drop(self.pulse);
        self.tasks.close();
        if let Err(error) = workers::mark_draining(&self.worker.db, self.worker.me).await {
            tracing::warn!(%error, "could not say that this worker drains");
        }
        tokio::select! {
            () = self.tasks.wait() => return,
            () = tokio::time::sleep(self.worker.config.drain_timeout) => {}
            () = shutdown.forced.cancelled() => {}
        }
        tracing::warn!(jobs = self.worker.leases.count(), "giving running jobs back");
        self.release.cancel();
        self.tasks.wait().await;
    }
}
