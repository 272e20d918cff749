//! Counts for gauges: the queue of the whole cluster, and what is committed on one host. Read only.

use std::time::Duration;

use crate::core::{
    db::{Consistency, DbError, DualDb, column, seconds},
    id::HostId,
};

/// At most this many queued jobs are counted, so that a long backlog does not make the statement slow.
const QUEUED_JOBS_MAX: i64 = 10_000;

/// The unfinished jobs of the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QueueStats {
    /// Queued jobs that are due, at most 10 000.
    pub due: i64,
    /// Queued jobs that are due later (retries and restarts), at most 10 000.
    pub later: i64,
    /// Running jobs.
    pub running: i64,
    /// How long the oldest queued job has been due.
    pub oldest_due: Duration,
}

/// Counts the unfinished jobs of the cluster.
///
/// # Errors
/// `Unavailable` or `ReadOnly` when the primary cannot be read; `Statement` or `Invariant` for a bug.
pub async fn queue_stats(db: &DualDb) -> Result<QueueStats, DbError> {
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query(
                "select count(*) filter (where run_at <= now()) as due, count(*) filter (where run_at > now()) as later,
                   (select count(*) from jobs where status = 'running') as running,
                   (select coalesce(extract(epoch from now() - min(run_at)), 0)::float8
                    from jobs where status = 'queued') as oldest_due_s
                 from (select run_at from jobs where status = 'queued' limit $1) queued",
                &[&QUEUED_JOBS_MAX],
            )
            .await
        })
        .await?;
    let Some(row) = rows.first() else { return Ok(QueueStats::default()) };
    Ok(QueueStats {
        due: column(row, "due")?,
        later: column(row, "later")?,
        running: column(row, "running")?,
        oldest_due: seconds(row, "oldest_due_s")?,
    })
}

/// The resources that the instances placed on a host may use together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommittedResources {
    /// Thousandths of a core.
    pub cpu_millis: i64,
    /// MiB.
    pub memory_mib: i64,
}

/// Adds up what the instances placed on a host may use.
///
/// # Errors
/// `Unavailable` or `ReadOnly` when the primary cannot be read; `Statement` or `Invariant` for a bug.
pub async fn committed_resources(db: &DualDb, host: HostId) -> Result<CommittedResources, DbError> {
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query(
                "select coalesce(sum(cpu_millis), 0)::bigint as cpu_millis,
                   coalesce(sum(memory_mib), 0)::bigint as memory_mib
                 from instances where host_id = $1 and status <> 'deleted'",
                &[&host],
            )
            .await
        })
        .await?;
    let Some(row) = rows.first() else { return Ok(CommittedResources::default()) };
    Ok(CommittedResources { cpu_millis: column(row, "cpu_millis")?, memory_mib: column(row, "memory_mib")? })
}
