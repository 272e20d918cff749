//! The jobs this process holds, and the one heartbeat that keeps them all.
//!
//! A job is lost when the heartbeat's answer lacks it, or when no heartbeat succeeded for so long that another worker
//! may soon have it (self-fence, by our monotonic clock). A lost job's task is cancelled: no more side effects, no writes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

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

/// Step changes of all jobs within this time go to Postgres together.
const COALESCE: Duration = Duration::from_millis(250);

/// Why a job must not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The lease is or may be another's: write nothing.
    Lost,
    /// Its owner wants it stopped: clean up and say so.
    Cancelled,
}

/// One job that is ours.
pub struct ActiveJob {
    pub lease: Lease,
    pub steps: Steps,
    pub lost: CancellationToken,
    pub cancelled: CancellationToken,
    beat_at: Mutex<Instant>,
}

pub struct Leases {
    db: DualDb,
    me: WorkerIdentity,
    times: LeaseTimes,
    health: Health,
    active: Mutex<HashMap<JobId, Arc<ActiveJob>>>,
    steps_changed: Arc<Notify>,
}

impl Leases {
    pub fn new(db: DualDb, me: WorkerIdentity, times: LeaseTimes, health: Health) -> Self {
        Self { db, me, times, health, active: Mutex::default(), steps_changed: Arc::default() }
    }

    /// Holds a job claimed by a statement sent at `claimed_at`.
    pub fn hold(&self, lease: Lease, claimed_at: Instant) -> Arc<ActiveJob> {
        let active = Arc::new(ActiveJob {
            lease,
            steps: Steps::new(self.steps_changed.clone()),
            lost: CancellationToken::new(),
            cancelled: CancellationToken::new(),
            beat_at: Mutex::new(claimed_at),
        });
        // Claimed again before its older attempt here noticed that it had lost its lease: two at once it must not be.
        if let Some(older) = self.active().insert(lease.job, active.clone()) {
            older.lost.cancel();
        }
        active
    }

    /// Forgets this claim; a newer one of the same job stays.
    pub fn release(&self, lease: Lease) {
        let mut active = self.active();
        if active.get(&lease.job).is_some_and(|active| active.lease == lease) {
            active.remove(&lease.job);
        }
    }

    /// Whether a job on this instance is ours.
    pub fn holds(&self, instance: InstanceId) -> bool {
        self.active().values().any(|active| active.lease.instance == instance)
    }

    pub fn count(&self) -> usize {
        self.active().len()
    }

    /// To be passed before each irreversible step: the lease is fine and was confirmed a moment ago.
    ///
    /// # Errors
    /// `StopReason`, when the job must not go on.
    pub async fn checkpoint(&self, active: &Arc<ActiveJob>) -> Result<(), StopReason> {
        if active.beat_at().elapsed() > self.times.fresh() {
            self.beat(vec![active.clone()]).await;
        }
        // Not confirmed now is as good as lost: an irreversible step may be half done when the lease ends.
        if active.lost.is_cancelled() || active.beat_at().elapsed() > self.times.fresh() {
            active.lost.cancel();
            return Err(StopReason::Lost);
        }
        if active.cancelled.is_cancelled() {
            return Err(StopReason::Cancelled);
        }
        Ok(())
    }

    /// Beats for ever.
    pub async fn run(&self) {
        let mut tick = tokio::time::interval(self.times.heartbeat());
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => self.beat(self.all()).await,
                () = self.steps_changed.notified() => {
                    tokio::time::sleep(COALESCE).await;
                    let changed: Vec<_> = self.all().into_iter().filter(|active| active.steps.has_changed()).collect();
                    if !changed.is_empty() {
                        self.beat(changed).await;
                    }
                }
            }
        }
    }

    /// Gives up, for ever, jobs whose lease was not confirmed for too long: also while a heartbeat hangs.
    pub async fn fence(&self) {
        let mut tick = tokio::time::interval(self.times.fence_check());
        loop {
            tick.tick().await;
            for active in self.all() {
                if active.beat_at().elapsed() > self.times.self_fence() && !active.lost.is_cancelled() {
                    tracing::warn!(job = %active.lease.job, "no heartbeat for too long; stopping work on it");
                    active.lost.cancel();
                }
            }
        }
    }

    /// Extends the leases of these jobs and writes their steps that changed.
    async fn beat(&self, jobs: Vec<Arc<ActiveJob>>) {
        let leases: Vec<_> = jobs.iter().map(|active| (active.lease, active.steps.take_changed())).collect();
        match self.send(&jobs, &leases).await {
            Ok(()) => {}
            Err(error) if error.is_about_the_data() => {
                tracing::warn!(%error, "heartbeat refused; sending it without steps, then job by job");
                self.beat_separately(&jobs, &leases).await;
            }
            Err(error) => {
                tracing::warn!(%error, "heartbeat failed");
                jobs.iter().for_each(|active| active.steps.put_back());
            }
        }
    }

    /// After a heartbeat that Postgres refused because of what one job wrote: that job can only lose itself.
    async fn beat_separately(&self, jobs: &[Arc<ActiveJob>], leases: &[(Lease, Option<Vec<Step>>)]) {
        let without_steps: Vec<_> = leases.iter().map(|(lease, _)| (*lease, None)).collect();
        let extended = self.send(jobs, &without_steps).await.is_ok();
        for (active, (lease, steps)) in jobs.iter().zip(leases) {
            let job = std::slice::from_ref(active);
            if steps.is_some() {
                match self.send(job, &[(*lease, steps.clone())]).await {
                    Ok(()) => continue,
                    Err(error) if error.is_about_the_data() => {
                        tracing::warn!(%error, job = %lease.job, "steps refused; writing them without details");
                        active.steps.drop_details();
                    }
                    Err(error) => tracing::warn!(%error, job = %lease.job, "heartbeat failed"),
                }
                active.steps.put_back();
            }
            if !extended && let Err(error) = self.send(job, &[(*lease, None)]).await {
                tracing::warn!(%error, job = %lease.job, "heartbeat of one job failed; its lease was not extended");
            }
        }
    }

    /// Sends one heartbeat and acts on its answer.
    async fn send(&self, jobs: &[Arc<ActiveJob>], leases: &[(Lease, Option<Vec<Step>>)]) -> Result<(), DbError> {
        let sent_at = Instant::now();
        match heartbeat(&self.db, self.me, leases, self.times.lease).await? {
            None => {
                tracing::error!(
                    "another worker has taken this host's name; this one is given nothing any more: stop it"
                );
                jobs.iter().for_each(|active| active.lost.cancel());
            }
            Some(ours) => {
                self.health.beat();
                for active in jobs {
                    match ours.get(&active.lease.job) {
                        Some(beat) => {
                            *active.beat_at_mut() = sent_at;
                            if beat.cancel_requested {
                                active.cancelled.cancel();
                            }
                        }
                        None if self.active().contains_key(&active.lease.job) => {
                            tracing::warn!(job = %active.lease.job, "lost the lease; stopping work on it");
                            active.lost.cancel();
                        }
                        // It ended while the heartbeat was under way.
                        None => {}
                    }
                }
            }
        }
        Ok(())
    }

    fn all(&self) -> Vec<Arc<ActiveJob>> {
        self.active().values().cloned().collect()
    }

    fn active(&self) -> MutexGuard<'_, HashMap<JobId, Arc<ActiveJob>>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ActiveJob {
    fn beat_at(&self) -> Instant {
        *self.beat_at_mut()
    }

    fn beat_at_mut(&self) -> MutexGuard<'_, Instant> {
        self.beat_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
