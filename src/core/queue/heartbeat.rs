//! Extending leases: one statement per process for all its jobs, carrying the steps that changed.
//!
//! What is missing in the answer is lost: another worker may have it. So is everything, and the worker is told, once another
//! one has taken the host's name: its boot gave back what it could, and what it could not must not be kept for ever. Ids
//! that were asked to cancel are told.

use std::{collections::HashMap, time::Duration};

use serde_json::Value;
use uuid::Uuid;

use super::claim::{Lease, WorkerIdentity};
use crate::core::{
    db::{DbError, DualDb},
    id::JobId,
};

/// A job that is still ours.
#[derive(Clone, Copy, Debug)]
pub struct Beat {
    pub cancel_requested: bool,
}

/// Extends the leases and writes the steps given (`None`: unchanged). Answers the jobs that are still ours; `None` when
/// the host is another worker's.
///
/// # Errors
/// As the database says.
pub async fn heartbeat(
    db: &DualDb,
    me: WorkerIdentity,
    leases: &[(Lease, Option<Value>)],
    lease_for: Duration,
) -> Result<Option<HashMap<JobId, Beat>>, DbError> {
    let rows = db
        .write()
        .await?
        .query(
            "with worker as (update workers set last_seen = now() where boot_id = $1),
             host as (update hosts set last_seen = now() where id = $2 and current_boot = $1 returning id),
             mine as (select m.id, m.token, m.lease, m.steps
                      from unnest($3::uuid[], $4::bigint[], $5::uuid[], $6::jsonb[]) as m (id, token, lease, steps)),
             kept as (update jobs j set lease_until = now() + make_interval(secs => $7), steps = coalesce(mine.steps, j.steps)
                      from mine join hosts h on h.id = $2 and h.current_boot = $1
                      where j.id = mine.id and j.status = 'running' and j.lease_token = mine.token and j.lease_id = mine.lease
                      returning j.id, j.cancel_requested_at is not null as cancel)
             select id, cancel from kept
             union all select null, null where not exists (select from host)",
            &[
                &me.boot.uuid(),
                &me.host.uuid(),
                &leases.iter().map(|(lease, _)| lease.job.uuid()).collect::<Vec<_>>(),
                &leases.iter().map(|(lease, _)| lease.token).collect::<Vec<_>>(),
                &leases.iter().map(|(lease, _)| lease.id.uuid()).collect::<Vec<_>>(),
                &leases.iter().map(|(_, steps)| steps.clone()).collect::<Vec<_>>(),
                &lease_for.as_secs_f64(),
            ],
        )
        .await?;
    let beats = rows.iter().map(|row| {
        let id: Option<Uuid> = row.get(0);
        Some((JobId::from(id?), Beat { cancel_requested: row.get(1) }))
    });
    Ok(beats.collect())
}
