//! The maintenance loop that every process runs: it rescues jobs, updates the queue's gauges and deletes old rows.
//!
//! There is no leader. The statements skip rows that another process has locked, so that several loops share the work, and
//! the loop of one process is enough. Each round logs what fails and goes on; the next round does the same work again.

use std::time::Duration;

use crate::core::{
    db::DualDb,
    idempotency,
    queue::{rescue, stats},
};

/// Rounds of maintenance in the length of a lease, so that an expired lease waits a sixth of its length at most.
const ROUNDS_PER_LEASE: u32 = 6;
/// Rounds between two deletions of old rows.
const ROUNDS_PER_DELETION: u32 = 60;

/// Runs maintenance without end. `lease`: the length of a job's lease.
pub async fn run(db: DualDb, lease: Duration) {
    let mut tick = tokio::time::interval(lease / ROUNDS_PER_LEASE);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut rounds: u32 = 0;
    loop {
        tick.tick().await;
        rescue_jobs(&db, lease).await;
        db.report();
        match stats::queue(&db).await {
            Ok(queue) => report(queue),
            Err(error) => tracing::debug!(%error, "could not count the queue's jobs; the next round tries again"),
        }
        if rounds.is_multiple_of(ROUNDS_PER_DELETION) {
            for result in [idempotency::delete_expired(&db).await, rescue::forget_old(&db).await] {
                if let Err(error) = result {
                    tracing::warn!(%error, "could not delete old rows; a later round tries again");
                }
            }
        }
        rounds = rounds.wrapping_add(1);
    }
}

async fn rescue_jobs(db: &DualDb, lease: Duration) {
    match rescue::rescue_expired_leases(db, lease).await {
        Ok(rescued) if rescued != rescue::Rescued::default() => {
            tracing::info!(?rescued, "rescued jobs and instances");
            for (what, count) in [
                ("lease", rescued.expired_leases),
                ("misfit", rescued.fail_unschedulable_jobs),
                ("silent_instance", rescued.silent_instances),
            ] {
                metrics::counter!("queue_rescued_total", "what" => what).increment(count as u64);
            }
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "could not rescue jobs; the next round tries again"),
    }
}

#[allow(clippy::cast_precision_loss, reason = "ten thousand at most, or as many as there are slots")]
fn report(queue: stats::Queue) {
    for (state, count) in [("due", queue.due), ("later", queue.later), ("running", queue.running)] {
        metrics::gauge!("queue_jobs", "state" => state).set(count as f64);
    }
    metrics::gauge!("queue_oldest_due_seconds").set(queue.oldest_due.as_secs_f64());
}
