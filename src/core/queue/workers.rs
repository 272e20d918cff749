//! Registering workers: one worker per host, by compare-and-set on `hosts.current_boot`.
//!
//! Registration is refused while the host's previous worker sent a heartbeat a moment ago, unless that worker has
//! written that it stopped, or ran on this machine and its process is gone. Jobs that the previous worker had claimed
//! are requeued in the same transaction, since no other host may run them.

use std::time::Duration;

use thiserror::Error;
use tokio_postgres::types::Json;

use super::{claim::WorkerIdentity, rescue};
use crate::core::{
    db::{DbError, DualDb, column},
    hosts::HostSpec,
    id::{BootId, HostId},
};

/// Why a worker could not register.
#[derive(Debug, Error)]
pub enum RegisterError {
    /// Another worker with this host name runs.
    #[error(
        "APP_HOST_NAME: another worker named \"{name}\" is alive (pid {pid}, seen {seen_s:.0} s ago); stop it, or if \
         this is another machine, give this one another name; example: APP_HOST_NAME={name}-2"
    )]
    NameInUse {
        /// The host's name.
        name: String,
        /// The process id of the other worker, on its machine.
        pid: i32,
        /// Seconds since its last heartbeat.
        seen_s: f64,
    },
    /// The host, by name, may not work.
    #[error("the host \"{0}\" is fenced or retired; an operator has to admit it again")]
    Fenced(String),
    /// The registration could not be written.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// The process that registers.
#[derive(Clone, Debug)]
pub struct ProcessInfo {
    /// The machine's id; a pid means something on its own machine only.
    pub machine_id: String,
    /// The process id.
    pub pid: i32,
    /// The release.
    pub version: &'static str,
    /// How many jobs it runs at a time.
    pub slots: usize,
}

/// Registers this process as the host's worker. Returns the identity to claim with, and how many jobs of the previous
/// worker were requeued. `silence`: a previous worker without a heartbeat for this long counts as crashed. `is_alive`:
/// whether a process of this machine exists.
///
/// # Errors `NameInUse` while the previous worker runs; `Fenced` for a host that an operator took out; `Db` with the
/// statement's error, in which case nothing was written unless the commit's answer was lost.
pub async fn register_worker(
    db: &DualDb,
    host: &HostSpec,
    process: &ProcessInfo,
    silence: Duration,
    is_alive: impl Fn(i32) -> bool,
) -> Result<(WorkerIdentity, usize), RegisterError> {
    let conn = db.write().await?;
    conn.begin().await?;
    let rows = conn
        .query(
            "with host as (
               insert into hosts (id, name) values ($1, $2)
               -- Locks the row: of two workers that register at once, one waits for the other.
               on conflict (name) do update set name = excluded.name
               returning id, state, epoch, current_boot)
             select host.id, host.state in ('fenced', 'retired') as fenced, host.epoch, w.machine_id, w.pid,
                    w.stopped_at is not null as stopped, extract(epoch from now() - w.last_seen)::float8 as seen_s
             from host left join workers w on w.boot_id = host.current_boot",
            &[&HostId::new(), &host.name],
        )
        .await?;
    let row = rows.first().ok_or_else(|| DbError::Invariant("no row of the host that was inserted".into()))?;
    if column(row, "fenced")? {
        return Err(RegisterError::Fenced(host.name.clone()));
    }
    if let (Some(machine), Some(pid), Some(seen_s)) = (
        column::<Option<String>>(row, "machine_id")?,
        column::<Option<i32>>(row, "pid")?,
        column::<Option<f64>>(row, "seen_s")?,
    ) {
        let stopped: bool = column(row, "stopped")?;
        let gone = machine == process.machine_id && !is_alive(pid);
        if !stopped && !gone && seen_s < silence.as_secs_f64() {
            return Err(RegisterError::NameInUse { name: host.name.clone(), pid, seen_s });
        }
    }
    let worker = WorkerIdentity {
        host: column(row, "id")?,
        boot: BootId::new(),
        epoch: column(row, "epoch")?,
        slots: process.slots,
    };
    conn.query(
        "with host as (
           update hosts set current_boot = $2, last_seen = now(), cpu_millis = $3, memory_mib = $4, labels = $5,
             address = $6, state = case when state = 'unreachable' then 'active' else state end
           where id = $1)
         insert into workers (boot_id, host_id, machine_id, pid, version, slots) values ($2, $1, $7, $8, $9, $10)",
        &[
            &worker.host,
            &worker.boot,
            &host.cpu_millis,
            &host.memory_mib,
            &Json(&host.labels),
            &host.address,
            &process.machine_id,
            &process.pid,
            &process.version,
            &i32::try_from(process.slots).unwrap_or(i32::MAX),
        ],
    )
    .await?;
    let requeued = rescue::rescue_earlier_boots(&conn, worker.host, worker.boot).await?;
    conn.commit().await?;
    Ok((worker, requeued))
}

/// Records that the worker claims no more jobs.
///
/// # Errors
/// `Unavailable`, `ReadOnly`, `Locked` or `RolledBack`: the statement may be repeated. `Statement` for a bug.
pub async fn mark_draining(db: &DualDb, worker: WorkerIdentity) -> Result<(), DbError> {
    let sql = "update workers set state = 'draining' where boot_id = $1";
    db.write().await?.query(sql, &[&worker.boot]).await.map(drop)
}

/// Records that the worker has stopped, so that the next worker of the host can register at once.
///
/// # Errors
/// `Unavailable`, `ReadOnly`, `Locked` or `RolledBack`: the statement may be repeated. `Statement` for a bug.
pub async fn mark_stopped(db: &DualDb, worker: WorkerIdentity) -> Result<(), DbError> {
    let sql = "update workers set state = 'stopped', stopped_at = now() where boot_id = $1";
    db.write().await?.query(sql, &[&worker.boot]).await.map(drop)
}
