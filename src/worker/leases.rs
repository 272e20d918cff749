//! The jobs that this process holds, and the heartbeat that extends all their leases in one statement.
//!
//! A lease is lost when the heartbeat's answer does not contain its job, or when no heartbeat has succeeded for so long
//! that the lease may soon expire: the worker then fences itself, by its own monotonic clock and even while a heartbeat
//! hangs. The task of a job whose lease is lost is cancelled: it begins no side effect and writes nothing.
//!
//! The steps of a job may hold text that Postgres refuses. It then loses its details, and the other jobs' leases are
//! extended all the same.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::{health::Health, steps::Steps};
use crate::{
    config::lease::LeaseTimes,
    core::{
        db::{DbError, DualDb},
        id::{InstanceId, JobId},
        queue::{
            claim::{Lease, WorkerIdentity},
            heartbeat::heartbeat,
            step::Step,
        },
    },
};

/// Changes of steps within this time are written together.
const COALESCE_INTERVAL: Duration = Duration::from_millis(250);

/// Why an attempt must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Another worker holds the lease, or may hold it: write nothing.
    LeaseLost,
    /// The owner has deleted the instance: undo the attempt and record that it was cancelled.
    Cancelled,
}

/// A job that this process holds.
pub struct ActiveJob {
    /// The proof of the claim.
    pub lease: Lease,
    /// The steps of the attempt.
    pub steps: Steps,
    /// Cancelled when the lease is lost.
    pub lost: CancellationToken,
    /// Cancelled when the owner has deleted the instance.
    pub cancelled: CancellationToken,
    /// The attempt's span, for lines about the job that other tasks log.
    span: Span,
    /// When the last statement was sent that confirmed the lease.
    confirmed_at: Mutex<Instant>,
}

/// The active jobs of this process.
pub struct Leases {
    db: DualDb,
    worker: WorkerIdentity,
    times: LeaseTimes,
    health: Health,
    active: Mutex<HashMap<JobId, Arc<ActiveJob>>>,
    steps_changed: Arc<Notify>,
}

impl Leases {
    /// Returns a worker's leases, none so far.
    pub fn new(db: DualDb, worker: WorkerIdentity, times: LeaseTimes, health: Health) -> Self {
        Self { db, worker, times, health, active: Mutex::default(), steps_changed: Arc::default() }
    }

    /// Adds a job that a statement sent at `claimed_at` claimed. `span`: that of the attempt.
    pub fn add(&self, lease: Lease, claimed_at: Instant, span: Span) -> Arc<ActiveJob> {
        let active = Arc::new(ActiveJob {
            lease,
            steps: Steps::new(self.steps_changed.clone()),
            lost: CancellationToken::new(),
            cancelled: CancellationToken::new(),
            span,
            confirmed_at: Mutex::new(claimed_at),
        });
        // This process has claimed the job again before its older attempt noticed that its lease was lost. The two must
        // not run at the same time.
        if let Some(older) = self.active.lock().insert(lease.job, active.clone()) {
            older.lost.cancel();
        }
        active
    }

    /// Removes the job of this lease; a newer claim of the same job stays.
    pub fn remove(&self, lease: Lease) {
        let mut active = self.active.lock();
        if active.get(&lease.job).is_some_and(|active| active.lease == lease) {
            active.remove(&lease.job);
        }
    }

    /// Returns whether a job of this instance is active here.
    pub fn has_job_of(&self, instance: InstanceId) -> bool {
        self.active.lock().values().any(|active| active.lease.instance == instance)
    }

    /// Returns how many jobs are active.
    pub fn count(&self) -> usize {
        self.active.lock().len()
    }

    /// Confirms, before a step that cannot be taken back, that the attempt may go on: the lease was extended a moment
    /// ago, if need be by a heartbeat of its own.
    ///
    /// # Errors
    /// `LeaseLost` when the lease is lost or cannot be confirmed now; `Cancelled` when the owner has deleted the
    /// instance.
    pub async fn checkpoint(&self, active: &Arc<ActiveJob>) -> Result<(), StopReason> {
        if active.confirmed_at().elapsed() > self.times.fresh() {
            self.extend(vec![active.clone()]).await;
        }
        // A lease that cannot be confirmed counts as lost: it might expire while the step is half done.
        if active.lost.is_cancelled() || active.confirmed_at().elapsed() > self.times.fresh() {
            active.lost.cancel();
            return Err(StopReason::LeaseLost);
        }
        if active.cancelled.is_cancelled() {
            return Err(StopReason::Cancelled);
        }
        Ok(())
    }

    /// Sends heartbeats until it is dropped: of all jobs at each interval, of single jobs when their steps change.
    pub async fn run_heartbeats(&self) {
        let mut tick = tokio::time::interval(self.times.heartbeat());
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => self.extend(self.all()).await,
                () = self.steps_changed.notified() => {
                    tokio::time::sleep(COALESCE_INTERVAL).await;
                    let mut changed = self.all();
                    changed.retain(|active| active.steps.has_unwritten());
                    if !changed.is_empty() {
                        self.extend(changed).await;
                    }
                }
            }
        }
    }

    /// Stops, until it is dropped, attempts whose lease was not confirmed for too long. A loop of its own, because a
    /// heartbeat can hang.
    pub async fn run_self_fence(&self) {
        let mut tick = tokio::time::interval(self.times.fence_check());
        loop {
            tick.tick().await;
            for active in self.all() {
                if active.confirmed_at().elapsed() > self.times.self_fence() && !active.lost.is_cancelled() {
                    active.warn("no heartbeat succeeded for too long; stopping the attempt before its lease expires");
                    active.lost.cancel();
                }
            }
        }
    }

    /// Extends the leases of these jobs and writes their steps that changed.
    async fn extend(&self, jobs: Vec<Arc<ActiveJob>>) {
        let leases: Vec<_> = jobs.iter().map(|active| (active.lease, active.steps.take_unwritten())).collect();
        match self.send_heartbeat(&jobs, &leases).await {
            Ok(()) => {}
            Err(error) if error.is_about_the_data() => {
                tracing::warn!(%error, "heartbeat refused by postgres; sending it without steps, then job by job");
                self.extend_separately(&jobs, &leases).await;
            }
            Err(error) => {
                tracing::warn!(%error, "heartbeat failed; the next one tries again");
                jobs.iter().for_each(|active| active.steps.mark_unwritten());
            }
        }
    }

    /// Extends the leases after Postgres has refused a heartbeat because of one job's steps: only that job loses its
    /// details.
    async fn extend_separately(&self, jobs: &[Arc<ActiveJob>], leases: &[(Lease, Option<Vec<Step>>)]) {
        let without_steps: Vec<_> = leases.iter().map(|(lease, _)| (*lease, None)).collect();
        let is_extended = self.send_heartbeat(jobs, &without_steps).await.is_ok();
        for (active, (lease, steps)) in jobs.iter().zip(leases) {
            let job = std::slice::from_ref(active);
            if steps.is_some() {
                match self.send_heartbeat(job, &[(*lease, steps.clone())]).await {
                    Ok(()) => continue,
                    Err(error) if error.is_about_the_data() => {
                        active.warn_of(&error, "steps refused by postgres; writing them without details");
                        active.steps.drop_details();
                    }
                    Err(error) => active.warn_of(&error, "heartbeat failed; the next one tries again"),
                }
                active.steps.mark_unwritten();
            }
            if !is_extended && let Err(error) = self.send_heartbeat(job, &[(*lease, None)]).await {
                active.warn_of(&error, "heartbeat of one job failed; its lease was not extended");
            }
        }
    }

    /// Sends one heartbeat and applies its answer to the jobs.
    async fn send_heartbeat(
        &self,
        jobs: &[Arc<ActiveJob>],
        leases: &[(Lease, Option<Vec<Step>>)],
    ) -> Result<(), DbError> {
        let sent_at = Instant::now();
        let Some(extended) = heartbeat(&self.db, self.worker, leases, self.times.lease).await? else {
            tracing::error!("another worker has registered for this host; this one claims nothing any more: stop it");
            jobs.iter().for_each(|active| active.lost.cancel());
            return Ok(());
        };
        self.health.record_heartbeat();
        for active in jobs {
            match extended.get(&active.lease.job) {
                Some(lease) => {
                    *active.confirmed_at.lock() = sent_at;
                    if lease.cancel_requested {
                        active.cancelled.cancel();
                    }
                }
                None if self.active.lock().contains_key(&active.lease.job) => {
                    active.warn("lease lost; stopping the attempt");
                    active.lost.cancel();
                }
                // The job ended while the heartbeat was under way.
                None => {}
            }
        }
        Ok(())
    }

    fn all(&self) -> Vec<Arc<ActiveJob>> {
        self.active.lock().values().cloned().collect()
    }
}

impl ActiveJob {
    fn confirmed_at(&self) -> Instant {
        *self.confirmed_at.lock()
    }

    fn warn(&self, message: &'static str) {
        self.span.in_scope(|| tracing::warn!("{message}"));
    }

    fn warn_of(&self, error: &DbError, message: &'static str) {
        self.span.in_scope(|| tracing::warn!(%error, "{message}"));
    }
}
