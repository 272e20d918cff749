//! Claiming and running: one claimer for the whole worker, one task per job.
//!
//! Woken by the bell, by a slot that frees while there is a backlog, by a job of ours that becomes due, and by a poll:
//! 2 s when idle, 0.5 s while Redis is away. So a lost bell costs about 2 s.

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
    Context, attempt,
    chance::random_unit,
    watchdog::{LONGEST_WAIT, Pulse},
};
use crate::{
    core::{
        db::DbError,
        id::{JobId, LeaseId},
        protocol::{
            boot,
            claim::{self, Candidates, Claimed},
        },
        queue::{Ear, Heard},
    },
    shutdown::Shutdown,
};

const IDLE_POLL: Duration = Duration::from_secs(2);
const DEAF_POLL: Duration = Duration::from_millis(500);
/// Our own time limit of a statement, and the server's.
const STATEMENT: Duration = Duration::from_millis(4500);

struct Dispatch {
    context: Arc<Context>,
    tasks: TaskTracker,
    slot_freed: Arc<Notify>,
    deaf: Arc<AtomicBool>,
    /// Running jobs are given back.
    release: CancellationToken,
    pulse: Pulse,
}

pub(super) async fn run(
    context: &Arc<Context>,
    ear: Ear,
    (claiming_pulse, listening_pulse): (Pulse, Pulse),
    shutdown: &Shutdown,
) {
    let dispatch = Dispatch {
        context: context.clone(),
        tasks: TaskTracker::new(),
        slot_freed: Arc::default(),
        deaf: Arc::default(),
        release: CancellationToken::new(),
        pulse: claiming_pulse,
    };
    let (heard, mut rung) = mpsc::channel(1);
    let listener = Listener {
        context: context.clone(),
        ear,
        heard,
        slot_freed: dispatch.slot_freed.clone(),
        deaf: dispatch.deaf.clone(),
        pulse: listening_pulse,
    };
    let listener = tokio::spawn(listener.run());
    // What waited while nobody worked.
    let mut backlog = true;
    // Only the wait is cut short: a claim under way is always followed by its jobs.
    while let Some(candidates) =
        shutdown.requested.run_until_cancelled(dispatch.next_candidates(&mut rung, backlog)).await
    {
        backlog = dispatch.claim_and_run(candidates).await;
    }
    listener.abort();
    dispatch.drain(shutdown).await;
}

/// Pops only what there are slots for, so that other hosts get the rest.
struct Listener {
    context: Arc<Context>,
    ear: Ear,
    heard: mpsc::Sender<Vec<JobId>>,
    slot_freed: Arc<Notify>,
    deaf: Arc<AtomicBool>,
    pulse: Pulse,
}

impl Listener {
    async fn run(self) {
        loop {
            self.pulse.beat();
            let free = self.context.me.slots.saturating_sub(self.context.leases.count());
            let room = tokio::time::timeout(LONGEST_WAIT, self.heard.reserve());
            let Ok(room) = room.await else { continue };
            let Ok(room) = room else { return };
            if free == 0 {
                let _ = tokio::time::timeout(LONGEST_WAIT, self.slot_freed.notified()).await;
                continue;
            }
            let outcome = self.ear.listen(free).await;
            self.deaf.store(outcome == Heard::Deaf, Ordering::Relaxed);
            match outcome {
                Heard::Jobs(ids) => room.send(ids),
                Heard::Deaf => tokio::time::sleep(DEAF_POLL).await,
                Heard::Silence => {}
            }
        }
    }
}

impl Dispatch {
    fn free(&self) -> usize {
        self.context.me.slots.saturating_sub(self.context.leases.count())
    }

    async fn next_candidates(&self, rung: &mut mpsc::Receiver<Vec<JobId>>, backlog: bool) -> Candidates {
        self.pulse.beat();
        while self.free() == 0 {
            let _ = tokio::time::timeout(LONGEST_WAIT, self.slot_freed.notified()).await;
            self.pulse.beat();
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
                    self.pulse.beat();
                    match claim::recover(&context.db, context.me, lease).await {
                        // Nothing yet: the server may still be at it, as long as it lets a statement run.
                        Ok(jobs) if jobs.is_empty() && sent_at.elapsed() < STATEMENT => {}
                        Ok(jobs) => return Ok(jobs),
                        Err(_) => {}
                    }
                }
                Err(DbError::Unavailable(reason))
            }
            other => other,
        }
    }

    fn start(&self, job: Claimed, claimed_at: Instant) {
        let held = self.context.leases.hold(job.lease, claimed_at);
        metrics::histogram!("job_wait_seconds", "kind" => job.kind.as_str()).record(job.waited);
        let (context, slot_freed, release) = (self.context.clone(), self.slot_freed.clone(), self.release.clone());
        let span = tracing::info_span!("job", id = %job.lease.job, kind = %job.kind, instance = %job.lease.instance);
        self.tasks.spawn(
            async move {
                attempt::run(&context, &job, claimed_at, &held, &release).await;
                context.leases.release(job.lease);
                // Both may wait for it: the claimer and the listener.
                slot_freed.notify_waiters();
                slot_freed.notify_one();
            }
            .instrument(span),
        );
    }

    async fn drain(self, shutdown: &Shutdown) {
        // Nothing is claimed any more: nothing to watch.
        drop(self.pulse);
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
