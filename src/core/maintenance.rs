//! Housekeeping that every process does: reaping, and forgetting what is old. No leader: statements skip each other's rows.

use std::time::Duration;

use crate::core::{
    db::DualDb,
    queue::{rescue, retention, stats},
};

/// Keeps house for ever. `lease`: the length of a job's lease; reaping goes six times in it.
pub async fn run(db: DualDb, lease: Duration) {
    let mut tick = tokio::time::interval(lease / 6);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut rounds: u32 = 0;
    loop {
        tick.tick().await;
        match rescue::run_round(&db, lease).await {
            Ok(rescued) if rescued != rescue::Rescued::default() => {
                tracing::info!(?rescued, "rescued");
                for (what, count) in [
                    ("lease", rescued.expired_leases),
                    ("misfit", rescued.unschedulable_jobs),
                    ("silent_instance", rescued.silent_instances),
                ] {
                    metrics::counter!("queue_rescued_total", "what" => what).increment(count as u64);
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "could not reap; the next round will"),
        }
        db.report();
        match stats::queue_stats(&db).await {
            Ok(queue) => report(queue),
            Err(error) => tracing::debug!(%error, "could not count the queue; the next round will"),
        }
        if rounds.is_multiple_of(60) {
            for result in [
                crate::core::idempotency::forget_old(&db).await,
                retention::delete_finished_jobs(&db).await,
                retention::delete_old_instances(&db).await,
            ] {
                if let Err(error) = result {
                    tracing::warn!(%error, "could not forget what is old; the next round will");
                }
            }
        }
        rounds = rounds.wrapping_add(1);
    }
}

#[allow(clippy::cast_precision_loss, reason = "ten thousand at most, or as many as there are slots")]
fn report(queue: stats::QueueStats) {
    for (state, count) in [("due", queue.due), ("later", queue.later), ("running", queue.running)] {
        metrics::gauge!("queue_jobs", "state" => state).set(count as f64);
    }
    metrics::gauge!("queue_oldest_due_seconds").set(queue.oldest_due.as_secs_f64());
}
