//! Housekeeping that every process does: reaping, and forgetting what is old. No leader: statements skip each other's rows.

use std::time::Duration;

use crate::core::{
    db::DualDb,
    protocol::{self, reap},
};

/// Keeps house for ever. `lease`: the length of a job's lease; reaping goes six times in it.
pub async fn run(db: DualDb, lease: Duration) {
    let mut tick = tokio::time::interval(lease / 6);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut rounds: u32 = 0;
    loop {
        tick.tick().await;
        match reap::reap(&db, lease).await {
            Ok(reaped) if reaped != reap::Reaped::default() => tracing::info!(?reaped, "reaped"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "could not reap; the next round will"),
        }
        db.report();
        if rounds.is_multiple_of(60) {
            for result in [protocol::forget_old(&db).await, reap::forget_old(&db).await] {
                if let Err(error) = result {
                    tracing::warn!(%error, "could not forget what is old; the next round will");
                }
            }
        }
        rounds = rounds.wrapping_add(1);
    }
}
