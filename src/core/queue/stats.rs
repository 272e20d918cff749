//! What there is, counted: the queue for everybody, and what is committed on one host. Read only, for gauges.

use std::time::Duration;

use crate::core::{
    db::{Consistency, DbError, DualDb},
    id::HostId,
};

/// Counting stops here, so that a long backlog does not make counting it slow.
const COUNTED: i64 = 10_000;

/// Unfinished jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Queue {
    /// Could be claimed now, 10 000 at most.
    pub due: i64,
    /// Wait for their time: retries and restarts, 10 000 at most.
    pub later: i64,
    pub running: i64,
    /// How long the oldest that is due has been so.
    pub oldest_due: Duration,
}

/// Counts the queue.
///
/// # Errors
/// As the database says.
pub async fn queue(db: &DualDb) -> Result<Queue, DbError> {
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query(
                "select count(*) filter (where run_at <= now()), count(*) filter (where run_at > now()),
                   (select count(*) from jobs where status = 'running'),
                   coalesce(extract(epoch from now() - (select min(run_at) from jobs where status = 'queued')), 0)::float8
                 from (select run_at from jobs where status = 'queued' limit $1) queued",
                &[&COUNTED],
            )
            .await
        })
        .await?;
    let Some(row) = rows.first() else { return Ok(Queue::default()) };
    // Negative: the next one is due in the future.
    let oldest_due = Duration::from_secs_f64(row.get::<_, f64>(3).max(0.0));
    Ok(Queue { due: row.get(0), later: row.get(1), running: row.get(2), oldest_due })
}

/// What the instances placed on a host were promised together: thousandths of a core, MiB.
///
/// # Errors
/// As the database says.
pub async fn committed(db: &DualDb, host: HostId) -> Result<(i64, i64), DbError> {
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query(
                "select coalesce(sum(cpu_millis), 0)::bigint, coalesce(sum(memory_mib), 0)::bigint
                 from instances where host_id = $1 and status <> 'deleted'",
                &[&host.uuid()],
            )
            .await
        })
        .await?;
    Ok(rows.first().map_or((0, 0), |row| (row.get(0), row.get(1))))
}
