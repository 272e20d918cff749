//! A worker takes over its host's name: by compare-and-set, so that two with one name cannot both work.
//!
//! Refused while the previous one was seen a moment ago, unless it said goodbye or its process is gone from this
//! machine. What the previous one had claimed goes back to the queue at once: nobody else may run it.

use std::time::Duration;

use serde_json::json;
use thiserror::Error;
use uuid::Uuid;

use super::{claim::WorkerIdentity, rescue};
use crate::core::{
    db::{DbError, DualDb},
    hosts::HostSpec,
    id::{BootId, HostId},
};

#[derive(Debug, Error)]
pub enum BootError {
    /// Another worker of this name lives.
    #[error(
        "APP_HOST_NAME: another worker named \"{name}\" is alive (pid {pid}, seen {seen_s:.0} s ago); stop it, or if this is \
         another machine, give this one another name; example: APP_HOST_NAME={name}-2"
    )]
    NameInUse { name: String, pid: i32, seen_s: f64 },
    #[error("the host \"{0}\" is fenced or retired; an operator has to admit it again")]
    Fenced(String),
    #[error(transparent)]
    Db(#[from] DbError),
}

/// This process, as it introduces itself.
#[derive(Clone, Debug)]
pub struct ProcessInfo {
    /// Tells machines apart, so that a pid means something.
    pub machine_id: String,
    pub pid: i32,
    pub version: &'static str,
    pub slots: usize,
}

/// Registers, and answers the identity to claim with and how many jobs of the previous boot were requeued.
///
/// # Errors
/// `NameInUse`, `Fenced`, or as the database says.
pub async fn register(
    db: &DualDb,
    host: &HostSpec,
    process: &ProcessInfo,
    silence: Duration,
    is_alive: impl Fn(i32) -> bool,
) -> Result<(WorkerIdentity, usize), BootError> {
    let conn = db.write().await?;
    conn.begin().await?;
    let rows = conn
        .query(
            "with host as (
               insert into hosts (id, name) values ($1, $2)
               -- Locks the row: of two that register at once, one waits for the other.
               on conflict (name) do update set name = excluded.name
               returning id, state, epoch, current_boot)
             select host.id, host.state, host.epoch, w.machine_id, w.pid, w.stopped_at is not null as stopped,
                    extract(epoch from now() - w.last_seen)::float8 as seen_s
             from host left join workers w on w.boot_id = host.current_boot",
            &[&HostId::new().uuid(), &host.name],
        )
        .await?;
    let row = rows.first().ok_or_else(|| DbError::Invariant("no host".into()))?;
    let state: String = row.get("state");
    if state == "fenced" || state == "retired" {
        return Err(BootError::Fenced(host.name.clone()));
    }
    if let (Some(machine), Some(pid), Some(seen_s)) = (
        row.get::<_, Option<String>>("machine_id"),
        row.get::<_, Option<i32>>("pid"),
        row.get::<_, Option<f64>>("seen_s"),
    ) {
        let stopped: bool = row.get("stopped");
        let gone = machine == process.machine_id && !is_alive(pid);
        if !stopped && !gone && seen_s < silence.as_secs_f64() {
            return Err(BootError::NameInUse { name: host.name.clone(), pid, seen_s });
        }
    }
    let me = WorkerIdentity {
        host: row.get::<_, Uuid>("id").into(),
        boot: BootId::new(),
        epoch: row.get("epoch"),
        slots: process.slots,
    };
    conn.query(
        "with host as (
           update hosts set current_boot = $2, last_seen = now(), cpu_millis = $3, memory_mib = $4, labels = $5, address = $6,
             state = case when state = 'unreachable' then 'active' else state end
           where id = $1)
         insert into workers (boot_id, host_id, machine_id, pid, version, slots) values ($2, $1, $7, $8, $9, $10)",
        &[
            &me.host.uuid(),
            &me.boot.uuid(),
            &host.cpu_millis,
            &host.memory_mib,
            &json!(host.labels),
            &host.address,
            &process.machine_id,
            &process.pid,
            &process.version,
            &i32::try_from(process.slots).unwrap_or(i32::MAX),
        ],
    )
    .await?;
    let requeued = rescue::requeue_earlier_boots(&conn, me.host, me.boot).await?;
    conn.commit().await?;
    Ok((me, requeued))
}

/// Says that no more jobs are claimed.
///
/// # Errors
/// As the database says.
pub async fn draining(db: &DualDb, me: WorkerIdentity) -> Result<(), DbError> {
    db.write()
        .await?
        .query("update workers set state = 'draining' where boot_id = $1", &[&me.boot.uuid()])
        .await
        .map(drop)
}

/// Says goodbye, so that the next one need not wait.
///
/// # Errors
/// As the database says.
pub async fn stopped(db: &DualDb, me: WorkerIdentity) -> Result<(), DbError> {
    db.write()
        .await?
        .query("update workers set state = 'stopped', stopped_at = now() where boot_id = $1", &[&me.boot.uuid()])
        .await
        .map(drop)
}
