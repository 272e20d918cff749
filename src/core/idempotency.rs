//! Idempotency records: the first request with a key does the work, the others get its answer.
//!
//! The record is written by the accepting statement itself, so it exists exactly when the work does. It holds ids only;
//! a replay shows their present state. Good for 24 h, whether or not it was deleted since.

use serde_json::Value;
use uuid::Uuid;

use crate::core::{
    db::{DbError, DualDb, WriteConn},
    id::{InstanceId, JobId, TenantId},
};

/// The header's key with what it is compared by.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    pub key: String,
    /// Method and path: the same key on another route is another key.
    pub route: String,
    /// SHA-256 of the canonical request.
    pub request_hash: [u8; 32],
}

/// What the first request with this key led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    pub instance: InstanceId,
    pub job: JobId,
}

/// Why there is nothing to replay.
#[derive(Debug, PartialEq, Eq)]
pub enum NoReplay {
    /// The key was used for another request.
    Reused,
    /// There is no record of the last 24 h: the first request's transaction is not over, or there was none.
    InProgress,
}

pub(super) async fn read(
    db: &DualDb,
    tenant: TenantId,
    key: &IdempotencyKey,
) -> Result<Result<Replay, NoReplay>, DbError> {
    let answer = match answer(&db.write().await?, tenant, key).await? {
        Ok(answer) => answer,
        Err(none) => return Ok(Err(none)),
    };
    let id = |name: &str| answer.get(name).and_then(Value::as_str).and_then(|text| text.parse::<Uuid>().ok());
    match (id("instance_id"), id("job_id")) {
        (Some(instance), Some(job)) => Ok(Ok(Replay { instance: instance.into(), job: job.into() })),
        _ => Err(DbError::Invariant("an idempotency record without ids".into())),
    }
}

/// What was recorded for this key and this request.
pub(super) async fn answer(
    conn: &WriteConn,
    tenant: TenantId,
    key: &IdempotencyKey,
) -> Result<Result<Value, NoReplay>, DbError> {
    let rows = conn
        .query(
            "select request_hash, answer from idempotency
             where tenant_id = $1 and route = $2 and key = $3 and created_at > now() - interval '24 hours'",
            &[&tenant.uuid(), &key.route, &key.key],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(Err(NoReplay::InProgress)) };
    if row.get::<_, &[u8]>(0) != key.request_hash.as_slice() {
        return Ok(Err(NoReplay::Reused));
    }
    Ok(Ok(row.get(1)))
}

/// Forgets records older than 24 h, a batch at a time.
///
/// # Errors
/// As the database says.
pub async fn forget_old(db: &DualDb) -> Result<(), DbError> {
    db.write()
        .await?
        .query(
            "delete from idempotency where ctid = any(array(
               select ctid from idempotency where created_at < now() - interval '24 hours' limit 1000))",
            &[],
        )
        .await
        .map(drop)
}
