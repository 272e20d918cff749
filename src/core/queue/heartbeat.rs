//! Extending leases: one statement (`heartbeat.sql`) per process for all its jobs, carrying the steps that changed.
//!
//! A job that is missing in the answer is lost: it was rescued after its lease had expired. All jobs of a worker are
//! lost once another worker has registered for the host. That worker requeued what it could; the jobs whose rows were
//! locked at that moment are not extended any more and expire.

use std::{collections::HashMap, time::Duration};

use tokio_postgres::types::Json;

use super::{
    claim::{Lease, WorkerIdentity},
    step::Step,
};
use crate::core::{
    db::{DbError, DualDb, column},
    id::JobId,
};

const HEARTBEAT: &str = include_str!("heartbeat.sql");

/// A job whose lease was extended.
#[derive(Clone, Copy, Debug)]
pub struct ExtendedLease {
    /// The owner has deleted the instance: the attempt should stop.
    pub cancel_requested: bool,
}

/// Extends the leases to `lease_ttl` from now and writes the given steps (`None`: unchanged). Returns the jobs that the
/// worker still holds, or `None` when the host belongs to another worker.
///
/// # Errors
/// `Unavailable`, `ReadOnly`, `Locked` or `RolledBack`: the statement may be repeated. `Statement`: Postgres refused
/// the steps of one of the jobs (`DbError::is_about_the_data`), or a bug.
pub async fn heartbeat(
    db: &DualDb,
    worker: WorkerIdentity,
    leases: &[(Lease, Option<Vec<Step>>)],
    lease_ttl: Duration,
) -> Result<Option<HashMap<JobId, ExtendedLease>>, DbError> {
    let rows = db
        .write()
        .await?
        .query(
            HEARTBEAT,
            &[
                &worker.boot,
                &worker.host,
                &leases.iter().map(|(lease, _)| lease.job).collect::<Vec<_>>(),
                &leases.iter().map(|(lease, _)| lease.token).collect::<Vec<_>>(),
                &leases.iter().map(|(lease, _)| lease.id).collect::<Vec<_>>(),
                &leases.iter().map(|(_, steps)| steps.as_ref().map(Json)).collect::<Vec<_>>(),
                &lease_ttl.as_secs_f64(),
            ],
        )
        .await?;
    let mut extended = HashMap::with_capacity(rows.len());
    for row in &rows {
        let Some(job) = column::<Option<JobId>>(row, "id")? else { return Ok(None) };
        extended.insert(job, ExtendedLease { cancel_requested: column(row, "cancel_requested")? });
    }
    Ok(Some(extended))
}
