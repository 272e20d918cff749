//! Recovering from crashed workers: expired leases, jobs that no host can hold, hosts that send no heartbeats.
//!
//! Every process runs a round each sixth of a lease. Rows that another process has locked are skipped, so no leader is
//! needed. For a while after a restart of Postgres leases are left alone: they are absolute times, and the workers that
//! hold them could not send heartbeats either.
//!
//! An expired lease counts as a crash of the worker, not as an attempt of the job. After `max_crashes` (3) the job
//! fails, except a delete, which must not leave a container behind. The three `rescue_*.sql` select different jobs and
//! treat them in the same way.

use super::claim::Lease;
use crate::{
    config::lease::LeaseTimes,
    core::{
        db::{DbError, DualDb, WriteConn},
        id::{BootId, HostId},
        instances::{ReasonCode, Transition},
        queue::job::JobKind,
    },
};

const EXPIRED: &str = include_str!("rescue_expired.sql");
const EARLIER_BOOTS: &str = include_str!("rescue_earlier_boots.sql");
const CRASHED: &str = include_str!("rescue_crashed.sql");
const FAIL_UNSCHEDULABLE: &str = include_str!("fail_unschedulable.sql");
const MARK_SILENT_INSTANCES: &str = include_str!("mark_silent_instances.sql");

/// The rows that one round changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rescued {
    /// Jobs whose lease or deadline had passed.
    pub expired_leases: usize,
    /// Jobs that failed because no host can hold them, or because none had room before their queue deadline.
    pub unschedulable_jobs: usize,
    /// Instances whose host has not sent a heartbeat for the length of a lease.
    pub silent_instances: usize,
}

/// Runs one round.
///
/// # Errors
/// `Unavailable`, `ReadOnly`, `Locked` or `RolledBack`: the next round does what is left. `Statement` for a bug.
pub async fn run_round(db: &DualDb, times: LeaseTimes) -> Result<Rescued, DbError> {
    Ok(Rescued {
        expired_leases: rescue_expired_leases(db, times).await?,
        unschedulable_jobs: fail_unschedulable_jobs(db).await?,
        silent_instances: mark_silent_instances(db, times).await?,
    })
}

/// Requeues, supersedes or fails jobs whose lease or deadline has passed. Returns how many.
async fn rescue_expired_leases(db: &DualDb, times: LeaseTimes) -> Result<usize, DbError> {
    let (kinds, from, to) = Transition::table_by_kind(Transition::Failed);
    let (pause, code) = (times.crash_pause().as_secs_f64(), ReasonCode::AttemptsExhausted);
    let (lease_s, restart_grace_s) = (times.lease.as_secs_f64(), times.restart_grace().as_secs_f64());
    let rows =
        db.write().await?.query(EXPIRED, &[&pause, &kinds, &from, &to, &code, &lease_s, &restart_grace_s]).await?;
    Ok(rows.len())
}

/// Requeues or fails one job whose attempt crashed while its worker goes on, as if its lease had expired. Returns
/// `false` when the lease was lost; nothing was written then.
///
/// # Errors
/// `Unavailable`, `ReadOnly`, `Locked` or `RolledBack`: the statement may be repeated. `Statement` for a bug.
pub async fn rescue_crashed_job(db: &DualDb, lease: Lease, times: LeaseTimes) -> Result<bool, DbError> {
    let (kinds, from, to) = Transition::table_by_kind(Transition::Failed);
    let (pause, code) = (times.crash_pause().as_secs_f64(), ReasonCode::AttemptsExhausted);
    let rows = db
        .write()
        .await?
        .query(CRASHED, &[&pause, &kinds, &from, &to, &code, &lease.job, &lease.token, &lease.id])
        .await?;
    Ok(!rows.is_empty())
}

/// Requeues at once what earlier workers of this host had claimed: they are gone, and no other host may run these jobs.
///
/// Jobs that are locked at the moment are skipped. To wait for them would deadlock: a heartbeat that is under way holds
/// its jobs and waits for the host's row, which the registration holds. That heartbeat is the last one to extend these
/// leases, since the next one finds another boot in the host's row, so `rescue_expired_leases` requeues what was
/// skipped a lease and a round later at the latest. The same holds for a claim that was under way.
pub(super) async fn rescue_earlier_boots(conn: &WriteConn, host: HostId, boot: BootId) -> Result<usize, DbError> {
    let (kinds, from, to) = Transition::table_by_kind(Transition::Failed);
    let code = ReasonCode::AttemptsExhausted;
    let rows = conn.query(EARLIER_BOOTS, &[&0.0f64, &kinds, &from, &to, &code, &host, &boot]).await?;
    Ok(rows.len())
}

/// Fails jobs that no host could ever hold, with each host's reason, and jobs that waited for room until their queue
/// deadline. Returns how many.
async fn fail_unschedulable_jobs(db: &DualDb) -> Result<usize, DbError> {
    let (from, to) = Transition::Failed(JobKind::Provision).table();
    let rows = db.write().await?.query(FAIL_UNSCHEDULABLE, &[&from, &to, &ReasonCode::NoCapacity]).await?;
    Ok(rows.len())
}

/// Marks the instances of hosts that send no heartbeats: what runs there is unknown, and an instance that should be
/// removed keeps its status and shows the reason. Returns how many.
async fn mark_silent_instances(db: &DualDb, times: LeaseTimes) -> Result<usize, DbError> {
    let (from, to) = Transition::HostSilent.table();
    let (lease_s, restart_grace_s) = (times.lease.as_secs_f64(), times.restart_grace().as_secs_f64());
    let rows = db
        .write()
        .await?
        .query(MARK_SILENT_INSTANCES, &[&lease_s, &from, &to, &ReasonCode::HostLost, &restart_grace_s])
        .await?;
    Ok(rows.len())
}

#[cfg(test)]
mod tests {
    use super::{CRASHED, EARLIER_BOOTS, EXPIRED};

    #[test]
    fn rescue_statements_treat_the_selected_jobs_alike() {
        let after_selection = |sql: &'static str| sql.split_once("\nrescued as (").map(|(_, rest)| rest);

        let expired = after_selection(EXPIRED);

        assert!(expired.is_some());
        assert_eq!(after_selection(EARLIER_BOOTS), expired);
        assert_eq!(after_selection(CRASHED), expired);
    }
}
