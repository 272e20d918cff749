//! What the caches ask Postgres, and what they are told of: facts about keys, changes, uses.

use std::{collections::HashMap, sync::Arc, time::Instant};

use subtle::ConstantTimeEq;
use time::OffsetDateTime;

use super::{CachedKey, KeyHash, KeyLookup};
use crate::core::{
    db::{Consistency, DbError, DualDb, Param, Row},
    id::{KeyId, TenantId},
    identity::{Caller, store::scopes},
};

/// Returns the rows of a statement whose column `read_only` is `transaction_read_only`, asked by the statement itself: on in
/// recovery. A standby may not know yet of a revocation, nor of a key, so what it says of keys is no answer, though the
/// connection was opened to a primary (a pooler in between may have exchanged the server).
///
/// # Errors
/// `ReadOnly` when the server takes no writes; `Unavailable` when it does not answer.
async fn of_primary(db: &DualDb, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, DbError> {
    db.read(Consistency::Primary, |c| async move {
        let rows = c.query(sql, params).await?;
        let is_read_only = rows.first().is_some_and(|row| row.get("read_only"));
        if is_read_only { Err(DbError::ReadOnly) } else { Ok(rows) }
    })
    .await
}

/// What the primary says of a hash. Never a replica: it may not know of a revocation yet.
pub(in crate::core::identity) async fn fact(db: &DualDb, hash: &[u8; 32]) -> Result<KeyLookup, DbError> {
    let (asked_at, hash) = (Instant::now(), *hash);
    // A row also for a key that is not there: that is an answer too, and only the primary's counts.
    let rows = of_primary(
        db,
        "select current_setting('transaction_read_only')::boolean as read_only,
           k.key_hash, k.ver, k.id, k.name, k.tenant_id, k.scopes, k.limits, k.expires_at,
           extract(epoch from now())::float8 as now_s,
           k.revoked_at is not null or t.suspended_at is not null or coalesce(k.expires_at <= now(), false) as refused,
           extract(epoch from k.not_before - now())::float8 as not_yet_s
         from (select 1) one left join (api_key k join tenants t on t.id = k.tenant_id) on k.key_hash = $1",
        &[&hash.as_slice()],
    )
    .await?;
    let unknown = Ok(KeyLookup::Unknown { until_s: None });
    let Some(row) = rows.first() else { return unknown };
    let Some(stored) = row.get::<_, Option<&[u8]>>("key_hash") else { return unknown };
    let ver = row.get("ver");
    if row.get("refused") {
        return Ok(KeyLookup::Refused { ver });
    }
    let not_yet: Option<f64> = row.get("not_yet_s");
    if not_yet.is_some_and(|seconds| seconds > 0.0) || !bool::from(stored.ct_eq(&hash)) {
        return Ok(KeyLookup::Unknown { until_s: not_yet.filter(|seconds| *seconds > 0.0) });
    }
    Ok(KeyLookup::Valid(Arc::new(CachedKey {
        hash,
        ver,
        caller: Arc::new(Caller {
            key: KeyId::from(row.get::<_, uuid::Uuid>("id")),
            name: row.get("name"),
            tenant: TenantId::from(row.get::<_, uuid::Uuid>("tenant_id")),
            scopes: scopes(row.get("scopes")),
            expires_at: row.get("expires_at"),
            limits: row.get("limits"),
        }),
        filled_at: row.get("now_s"),
        took: asked_at.elapsed().as_secs_f64(),
    })))
}

/// Postgres' time, and the versions of the keys that changed within six minutes: longer than any cached value lives.
pub(super) async fn changed_lately(db: &DualDb) -> Result<(f64, HashMap<KeyHash, i64>), DbError> {
    let rows = of_primary(
        db,
        "select current_setting('transaction_read_only')::boolean as read_only,
           extract(epoch from now())::float8 as now_s, k.name, k.ver from (select 1) one left join lateral (
           select substr(key_hash, 1, 16) as name, ver from api_key
           where changed_at > now() - interval '6 minutes') k on true",
        &[],
    )
    .await?;
    let now = rows.first().map_or(0.0, |row| row.get("now_s"));
    let changed = rows.iter().filter_map(|row| {
        let name: Option<&[u8]> = row.get("name");
        Some((name?.try_into().ok()?, row.get("ver")))
    });
    Ok((now, changed.collect()))
}

/// Adds uses. `uses`: key, last time, how many; in one order everywhere.
pub(super) async fn record_usage(db: &DualDb, uses: &[(uuid::Uuid, OffsetDateTime, i64)]) -> Result<(), DbError> {
    db.write()
        .await?
        .query(
            "insert into api_key_usage (key_id, last_used_at, n)
             select u.key, u.at, u.n from unnest($1::uuid[], $2::timestamptz[], $3::bigint[]) as u (key, at, n)
             join api_key k on k.id = u.key order by u.key
             on conflict (key_id) do update
               set last_used_at = greatest(api_key_usage.last_used_at, excluded.last_used_at), n = api_key_usage.n + excluded.n",
            &[
                &uses.iter().map(|(key, ..)| *key).collect::<Vec<_>>(),
                &uses.iter().map(|(_, at, _)| *at).collect::<Vec<_>>(),
                &uses.iter().map(|(.., n)| *n).collect::<Vec<_>>(),
            ],
        )
        .await
        .map(drop)
}

/// A change that the caches have to hear of.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its row there; 0: none.
    pub outbox: i64,
    pub hash: [u8; 32],
    pub ver: i64,
    /// No longer good; otherwise good in another way.
    pub refused: bool,
}

pub(in crate::core) fn change(row: &Row) -> Option<Change> {
    let hash: &[u8] = row.get("key_hash");
    Some(Change {
        outbox: row.get("outbox"),
        hash: hash.try_into().ok()?,
        ver: row.get("ver"),
        refused: row.get("refused"),
    })
}

/// Changes that Redis has not heard of, oldest first, and how many seconds ago the oldest was made. A refusal that was
/// overtaken by a later change is told as a mere change: its tombstone would refuse a key that is good again.
pub(super) async fn unpropagated(db: &DualDb) -> Result<(Vec<Change>, f64), DbError> {
    let rows = of_primary(
        db,
        "select current_setting('transaction_read_only')::boolean as read_only,
           o.id as outbox, o.key_hash, o.ver, o.op = 1 and o.ver = k.ver as refused,
           extract(epoch from now() - o.at)::float8 as age_s
         from cache_outbox o join api_key k using (key_hash)
         where o.done_at is null and o.at < now() - interval '4 seconds' order by o.id limit 500",
        &[],
    )
    .await?;
    let oldest = rows.first().map_or(0.0, |row| row.get("age_s"));
    Ok((rows.iter().filter_map(change).collect(), oldest))
}

/// Notes that Redis has heard of them, and forgets what is long done.
pub(super) async fn propagated(db: &DualDb, outbox: &[i64]) -> Result<(), DbError> {
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
