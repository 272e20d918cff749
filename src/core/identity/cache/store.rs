//! The caches' statements: looking up a key, reading recently changed keys, the outbox of changes, and uses.
//!
//! Reads go to the primary and check in the same statement that the server takes writes (`transaction_read_only` is on
//! in recovery). A standby may not have a revocation yet, nor a key, so its answer is not used, although the connection
//! was opened to a primary: a pooler in between may have changed the server.

use std::{collections::HashMap, sync::Arc, time::Instant};

use subtle::ConstantTimeEq;
use tokio_postgres::types::Json;

use super::key::{CachedKey, KeyLookup, KeyUses, ShortHash};
use crate::core::{
    db::{Consistency, DbError, DualDb, Param, Row, column, decode_each},
    identity::{
        caller::{Caller, Scope},
        invalidation::Invalidation,
        limits::KeyLimits,
    },
};

const LOOKUP: &str = include_str!("lookup.sql");
const RECENTLY_CHANGED: &str = include_str!("recently_changed.sql");
const UNDELIVERED: &str = include_str!("undelivered.sql");

async fn read_primary(db: &DualDb, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, DbError> {
    db.read(Consistency::Primary, |c| async move {
        let rows = c.query(sql, params).await?;
        let is_read_only = rows.first().map(|row| column::<bool>(row, "read_only")).transpose()?;
        if is_read_only == Some(true) { Err(DbError::ReadOnly) } else { Ok(rows) }
    })
    .await
}

/// Looks up a key by its hash on the primary.
///
/// # Errors
/// `ReadOnly` when the server takes no writes, `Unavailable` when it does not answer, `Invariant` when the key's limits
/// cannot be read.
pub(in crate::core::identity) async fn lookup(db: &DualDb, hash: &[u8; 32]) -> Result<KeyLookup, DbError> {
    let (started, hash) = (Instant::now(), *hash);
    let rows = read_primary(db, LOOKUP, &[&hash.as_slice()]).await?;
    let row = rows.first().ok_or_else(|| DbError::Invariant("the lookup of a key returned no row".into()))?;
    let Some(stored) = column::<Option<&[u8]>>(row, "key_hash")? else {
        return Ok(KeyLookup::Unknown { valid_in_s: None });
    };
    let ver = column(row, "ver")?;
    if column(row, "refused")? {
        return Ok(KeyLookup::Refused { ver });
    }
    let valid_in_s: Option<f64> = column(row, "valid_in_s")?;
    let valid_in_s = valid_in_s.filter(|seconds| *seconds > 0.0);
    if valid_in_s.is_some() || !bool::from(stored.ct_eq(&hash)) {
        return Ok(KeyLookup::Unknown { valid_in_s });
    }
    let caller = caller(row).inspect_err(|error| {
        let id: Option<uuid::Uuid> = row.try_get("id").ok();
        tracing::error!(key = id.map(tracing::field::display), %error, "cannot read a key; its request fails");
    })?;
    Ok(KeyLookup::Valid(Arc::new(CachedKey {
        hash,
        ver,
        caller: Arc::new(caller),
        filled_at: column(row, "now_s")?,
        read_seconds: started.elapsed().as_secs_f64(),
    })))
}

fn caller(row: &Row) -> Result<Caller, DbError> {
    let key = column(row, "id")?;
    let limits: Json<KeyLimits> = column(row, "limits")?;
    Ok(Caller {
        key,
        name: column(row, "name")?,
        tenant: column(row, "tenant_id")?,
        scopes: Scope::known(key, &column::<Vec<String>>(row, "scopes")?),
        expires_at: column(row, "expires_at")?,
        limits: limits.0,
    })
}

/// The keys that changed recently.
pub(super) struct RecentlyChanged {
    /// Postgres' clock, in seconds since 1970.
    pub postgres_now: f64,
    pub versions: HashMap<ShortHash, i64>,
}

/// Reads the keys that changed within six minutes.
pub(super) async fn recently_changed(db: &DualDb) -> Result<RecentlyChanged, DbError> {
    let rows = read_primary(db, RECENTLY_CHANGED, &[]).await?;
    let first = rows.first().ok_or_else(|| DbError::Invariant("the version feed returned no row".into()))?;
    let postgres_now = column(first, "now_s")?;
    let mut versions = HashMap::new();
    for row in &rows {
        // The only row without a hash is that of a feed without keys.
        let Some(hash) = column::<Option<&[u8]>>(row, "short_hash")? else { continue };
        let hash = hash.try_into().map_err(|_| DbError::Invariant("a key's hash is too short".into()))?;
        versions.insert(hash, column(row, "ver")?);
    }
    Ok(RecentlyChanged { postgres_now, versions })
}

/// Adds uses of keys, which must be in the order of their ids. Keys that are gone are skipped.
pub(super) async fn record_usage(db: &DualDb, uses: &[KeyUses]) -> Result<(), DbError> {
    db.write()
        .await?
        .query(
            "insert into api_key_usage (key_id, last_used_at, n)
             select u.key, u.at, u.n from unnest($1::uuid[], $2::timestamptz[], $3::bigint[]) as u (key, at, n)
             join api_key k on k.id = u.key order by u.key
             on conflict (key_id) do update
               set last_used_at = greatest(api_key_usage.last_used_at, excluded.last_used_at),
                   n = api_key_usage.n + excluded.n",
            &[
                &uses.iter().map(|uses| uses.key).collect::<Vec<_>>(),
                &uses.iter().map(|uses| uses.last_at).collect::<Vec<_>>(),
                &uses.iter().map(|uses| uses.count).collect::<Vec<_>>(),
            ],
        )
        .await
        .map(drop)
}

/// Changes in the outbox that Redis has not taken.
pub(super) struct Undelivered {
    pub invalidations: Vec<Invalidation>,
    /// How long ago the oldest one was committed, in seconds; 0 when there is none.
    pub oldest_s: f64,
}

/// Reads the outbox.
pub(super) async fn undelivered(db: &DualDb) -> Result<Undelivered, DbError> {
    let rows = read_primary(db, UNDELIVERED, &[]).await?;
    let oldest_s = rows.first().map_or(Ok(0.0), |row| column(row, "age_s"))?;
    Ok(Undelivered { invalidations: decode_each(&rows, "invalidation", Invalidation::from_row), oldest_s })
}

/// Marks changes as delivered, and deletes those that were delivered more than an hour ago.
pub(super) async fn mark_delivered(db: &DualDb, outbox: &[i64]) -> Result<(), DbError> {
    db.write()
        .await?
        .query(
            "with old as (delete from cache_outbox where done_at < now() - interval '1 hour')
             update cache_outbox set done_at = now() where id = any($1)",
            &[&outbox],
        )
        .await
        .map(drop)
}
