//! Maintenance of the queue, which every process does: rescues expired leases, counts the queue, deletes old rows.
//!
//! There is no leader: the statements skip rows that another process has locked. A round that fails is repeated by the
//! next one. The counts are kept with their time, so that `/metrics` can show how old they have become: when the rounds
//! stop, the age of the oldest due job grows and its alarm fires.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    config::lease::LeaseTimes,
    core::{
        db::DualDb,
        idempotency,
        queue::{
            rescue, retention,
            stats::{self, QueueStats},
        },
    },
};

/// Old rows are deleted once in this many rounds.
const DELETE_INTERVAL_ROUNDS: u32 = 60;

/// The maintenance of one process; a clone shares its counts.
#[derive(Clone)]
pub struct Maintenance {
    db: DualDb,
    times: LeaseTimes,
    counts: Counts,
}

/// The queue as it was counted last, and when.
#[derive(Clone)]
struct Counts(Arc<Mutex<(Option<QueueStats>, Instant)>>);

impl Maintenance {
    /// Returns the maintenance, which does nothing before `run`.
    pub fn new(db: DualDb, times: LeaseTimes) -> Self {
        Self { db, times, counts: Counts(Arc::new(Mutex::new((None, Instant::now())))) }
    }

    /// Runs until the process ends.
    pub async fn run(&self) {
        let mut tick = tokio::time::interval(self.times.rescue_interval());
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut rounds: u32 = 0;
        loop {
            tick.tick().await;
            self.rescue().await;
            match stats::queue_stats(&self.db).await {
                Ok(queue) => *self.counts.0.lock() = (Some(queue), Instant::now()),
                Err(error) => tracing::debug!(%error, "could not count the queue; the next round tries again"),
            }
            if rounds.is_multiple_of(DELETE_INTERVAL_ROUNDS) {
                self.delete_old_rows().await;
            }
            rounds = rounds.wrapping_add(1);
        }
    }

    /// Sets the gauges of the queue.
    pub fn report(&self) {
        self.counts.report(Instant::now());
    }

    async fn rescue(&self) {
        match rescue::run_round(&self.db, self.times).await {
            Ok(rescued) if rescued != rescue::Rescued::default() => {
                tracing::info!(?rescued, "rescued jobs and instances");
                for (what, count) in [
                    ("expired_lease", rescued.expired_leases),
                    ("unschedulable_job", rescued.unschedulable_jobs),
                    ("silent_instance", rescued.silent_instances),
                ] {
                    metrics::counter!("queue_rescued_total", "what" => what).increment(count as u64);
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "could not rescue expired leases; the next round tries again"),
        }
    }

    async fn delete_old_rows(&self) {
        for result in [
            idempotency::delete_expired(&self.db).await,
            retention::delete_finished_jobs(&self.db).await,
            retention::delete_old_instances(&self.db).await,
        ] {
            if let Err(error) = result {
                tracing::warn!(%error, "could not delete old rows; a later round tries again");
            }
        }
    }
}

impl Counts {
    /// Sets the gauges. The age of the oldest due job goes on since the count, and without a due job it is the age of the
    /// count itself: a job may have become due right after it.
    #[allow(clippy::cast_precision_loss, reason = "ten thousand at most, or as many as there are slots")]
    fn report(&self, now: Instant) {
        let (queue, counted_at) = *self.0.lock();
        let queue = queue.unwrap_or_default();
        for (state, count) in [("due", queue.due), ("later", queue.later), ("running", queue.running)] {
            metrics::gauge!("queue_jobs", "state" => state).set(count as f64);
        }
        let oldest_due: Duration = queue.oldest_due + now.saturating_duration_since(counted_at);
        metrics::gauge!("queue_oldest_due_seconds").set(oldest_due.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn age_of_the_oldest_due_job_grows_when_rounds_stop() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let counted_at = Instant::now();
        let queue = QueueStats { due: 1, oldest_due: Duration::from_secs(2), ..QueueStats::default() };
        let counts = Counts(Arc::new(Mutex::new((Some(queue), counted_at))));

        metrics::with_local_recorder(&recorder, || counts.report(counted_at + Duration::from_secs(600)));

        let text = recorder.handle().render();
        assert!(text.contains("queue_oldest_due_seconds 602"), "{text}");
    }
}
