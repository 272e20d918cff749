//! API keys in Postgres. Only hashes are stored; every change bumps `ver` and `changed_at`.

use std::{collections::HashMap, sync::Arc, time::Instant};

use subtle::ConstantTimeEq;
use time::OffsetDateTime;

use super::{
    Caller, Scope,
    api_key::NewKey,
    cache::{Cached, Fact, KeyHash},
};
use crate::core::{
    db::{Consistency, DbError, DualDb, Row},
    id::{KeyId, TenantId},
    page::{Page, PageRequest},
};

/// A key as it may be shown.
#[derive(Clone, Debug)]
pub struct KeyRecord {
    pub id: KeyId,
    pub name: String,
    pub tenant: TenantId,
    pub scopes: Vec<Scope>,
    pub hint: String,
    pub created_at: OffsetDateTime,
    pub expires_at: Option<OffsetDateTime>,
    pub revoked_at: Option<OffsetDateTime>,
    /// Written every half minute.
    pub last_used_at: Option<OffsetDateTime>,
}

/// What the primary says of a hash. Never a replica: it may not know of a revocation yet.
pub(super) async fn fact(db: &DualDb, hash: &[u8; 32]) -> Result<Fact, DbError> {
    let (asked_at, hash) = (Instant::now(), *hash);
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query(
                "select k.key_hash, k.ver, k.id, k.name, k.tenant_id, k.scopes, k.limits, k.expires_at,
                   extract(epoch from now())::float8 as now_s,
                   k.revoked_at is not null or t.suspended_at is not null or coalesce(k.expires_at <= now(), false) as refused,
                   extract(epoch from k.not_before - now())::float8 as not_yet_s
                 from api_key k join tenants t on t.id = k.tenant_id where k.key_hash = $1",
                &[&hash.as_slice()],
            )
            .await
        })
        .await?;
    let Some(row) = rows.first() else { return Ok(Fact::Unknown { until_s: None }) };
    let stored: &[u8] = row.get("key_hash");
    let ver = row.get("ver");
    if row.get("refused") {
        return Ok(Fact::Refused { ver });
    }
    let not_yet: Option<f64> = row.get("not_yet_s");
    if not_yet.is_some_and(|seconds| seconds > 0.0) || !bool::from(stored.ct_eq(&hash)) {
        return Ok(Fact::Unknown { until_s: not_yet.filter(|seconds| *seconds > 0.0) });
    }
    Ok(Fact::Valid(Arc::new(Cached {
        hash,
        ver,
        caller: Caller {
            key: KeyId::from(row.get::<_, uuid::Uuid>("id")),
            name: row.get("name"),
            tenant: TenantId::from(row.get::<_, uuid::Uuid>("tenant_id")),
            scopes: scopes(row.get("scopes")),
            expires_at: row.get("expires_at"),
            limits: row.get("limits"),
        },
        filled_at: row.get("now_s"),
        took: asked_at.elapsed().as_secs_f64(),
    })))
}

/// Postgres' time, and the versions of the keys that changed within six minutes: longer than any cached value lives.
pub(super) async fn changed_lately(db: &DualDb) -> Result<(f64, HashMap<KeyHash, i64>), DbError> {
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query(
                "select extract(epoch from now())::float8, k.name, k.ver from (select 1) one left join lateral (
                   select substr(key_hash, 1, 16) as name, ver from api_key
                   where changed_at > now() - interval '6 minutes') k on true",
                &[],
            )
            .await
        })
        .await?;
    let now = rows.first().map_or(0.0, |row| row.get(0));
    let changed = rows.iter().filter_map(|row| {
        let name: Option<&[u8]> = row.get(1);
        Some((name?.try_into().ok()?, row.get(2)))
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

fn change(row: &Row) -> Option<Change> {
    let hash: &[u8] = row.get("key_hash");
    Some(Change {
        outbox: row.get("outbox"),
        hash: hash.try_into().ok()?,
        ver: row.get("ver"),
        refused: row.get("refused"),
    })
}

/// Changes that Redis has not heard of, oldest first.
pub(super) async fn unpropagated(db: &DualDb) -> Result<Vec<Change>, DbError> {
    let rows = db
        .write()
        .await?
        .query(
            "select id as outbox, key_hash, ver, op = 1 as refused from cache_outbox
             where done_at is null and at < now() - interval '4 seconds' order by id limit 500",
            &[],
        )
        .await?;
    Ok(rows.iter().filter_map(change).collect())
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

/// What a new key should be.
#[derive(Clone, Debug)]
pub struct KeySpec {
    pub id: KeyId,
    pub name: String,
    pub tenant: TenantId,
    pub scopes: Vec<Scope>,
    pub not_before: Option<OffsetDateTime>,
    pub expires_at: Option<OffsetDateTime>,
    pub created_by: Option<KeyId>,
}

/// Revokes the tenant's key. `None`: there is none. Revoked already: it is told once more, for the first time may not
/// have got through yet, and whoever asks twice is promised the same.
///
/// # Errors
/// As the database says.
pub async fn revoke(
    db: &DualDb,
    tenant: Option<TenantId>,
    key: KeyId,
    by: KeyId,
) -> Result<Option<Vec<Change>>, DbError> {
    let rows = db
        .write()
        .await?
        .query(
            "with hit as (
               select id, key_hash, ver from api_key where id = $1 and ($2::uuid is null or tenant_id = $2) for update),
             gone as (
               update api_key k set revoked_at = now(), revoked_by = $3, ver = k.ver + 1, changed_at = now()
               from hit where k.id = hit.id and k.revoked_at is null returning k.*),
             told as (insert into cache_outbox (key_hash, ver, op) select key_hash, ver, 1 from gone returning id, key_hash),
             event as (
               insert into events (tenant_id, kind, detail)
               select tenant_id, 'key.revoked', jsonb_build_object('key_id', id, 'by', $3::uuid) from gone)
             select coalesce(told.id, 0) as outbox, hit.key_hash, coalesce(gone.ver, hit.ver) as ver, true as refused
             from hit left join gone on true left join told on true",
            &[&key.uuid(), &tenant.map(TenantId::uuid), &by.uuid()],
        )
        .await?;
    Ok(changes_of_hit(&rows))
}

/// What a change of a key sets; `None`: as it is.
#[derive(Clone, Debug, Default)]
pub struct KeyPatch {
    pub name: Option<String>,
    pub scopes: Option<Vec<Scope>>,
    /// `Some(None)`: it never expires.
    pub expires_at: Option<Option<OffsetDateTime>>,
}

/// Changes the tenant's key. `None`: there is none that is not revoked.
///
/// # Errors
/// As the database says.
pub async fn patch(
    db: &DualDb,
    tenant: Option<TenantId>,
    key: KeyId,
    by: KeyId,
    patch: &KeyPatch,
) -> Result<Option<Vec<Change>>, DbError> {
    let scopes: Option<Vec<&str>> = patch.scopes.as_ref().map(|all| all.iter().map(|scope| scope.as_str()).collect());
    let rows = db
        .write()
        .await?
        .query(
            "with hit as (
               update api_key k set name = coalesce($4, name), scopes = coalesce($5, scopes),
                 expires_at = case when $6 then $7 else expires_at end, ver = ver + 1, changed_at = now()
               where k.id = $1 and ($2::uuid is null or k.tenant_id = $2) and k.revoked_at is null returning k.*),
             told as (insert into cache_outbox (key_hash, ver, op) select key_hash, ver, 2 from hit returning id),
             event as (
               insert into events (tenant_id, kind, detail)
               select tenant_id, 'key.changed', jsonb_build_object('key_id', id, 'by', $3::uuid, 'scopes', scopes) from hit)
             select told.id as outbox, hit.key_hash, hit.ver, false as refused from hit, told",
            &[
                &key.uuid(),
                &tenant.map(TenantId::uuid),
                &by.uuid(),
                &patch.name,
                &scopes,
                &patch.expires_at.is_some(),
                &patch.expires_at.flatten(),
            ],
        )
        .await?;
    Ok(changes_of_hit(&rows))
}

/// Puts a new key in the place of the tenant's key, which is refused at once or, with a grace, in so many seconds.
/// `None`: there is none that is good. The new key inherits name, scopes, expiry and limits.
///
/// # Errors
/// As the database says.
pub async fn rotate(
    db: &DualDb,
    tenant: Option<TenantId>,
    key: KeyId,
    by: KeyId,
    (new_id, new): (KeyId, &NewKey),
    grace_s: f64,
) -> Result<Option<(KeyRecord, Vec<Change>)>, DbError> {
    let rows = db
        .write()
        .await?
        .query(
            "with hit as (
               select * from api_key where id = $1 and ($2::uuid is null or tenant_id = $2) and revoked_at is null
                 and (expires_at is null or expires_at > now()) for update),
             old as (
               update api_key k set ver = k.ver + 1, changed_at = now(),
                 revoked_at = case when $9::float8 > 0 then null else now() end, revoked_by = case when $9::float8 > 0 then null else $3::uuid end,
                 expires_at = case when $9::float8 > 0 then least(k.expires_at, now() + make_interval(secs => $9::float8)) else k.expires_at end
               from hit where k.id = hit.id returning k.*),
             new as (
               insert into api_key (id, tenant_id, name, env, key_hash, pepper_v, hint, scopes, limits, created_by,
                                    not_before, expires_at, rotated_from)
               select $4, tenant_id, name, $5, $6, $7, $8, scopes, limits, $3, not_before, hit.expires_at, id from hit
               returning *),
             told as (
               insert into cache_outbox (key_hash, ver, op) select key_hash, ver, case when $9::float8 > 0 then 2 else 1 end from old
               returning id),
             event as (
               insert into events (tenant_id, kind, detail)
               select tenant_id, 'key.rotated', jsonb_build_object('key_id', id, 'by', $3::uuid, 'new_key_id', $4::uuid) from old)
             select new.id, new.name, new.tenant_id, new.scopes, new.hint, new.created_at, new.expires_at, new.revoked_at,
                    null::timestamptz as last_used_at,
                    told.id as outbox, old.key_hash, old.ver, $9::float8 <= 0 as refused
             from new, old, told",
            &[
                &key.uuid(),
                &tenant.map(TenantId::uuid),
                &by.uuid(),
                &new_id.uuid(),
                &new.env.code(),
                &new.hash.as_slice(),
                &new.pepper_version,
                &new.hint,
                &grace_s,
            ],
        )
        .await?;
    Ok(rows.first().map(|row| (record(row), change(row).into_iter().collect())))
}

/// Suspends a tenant, or lets it in again: all its keys change at once. `None`: there is no such tenant.
///
/// # Errors
/// As the database says.
pub async fn suspend(db: &DualDb, tenant: &str, suspended: bool) -> Result<Option<Vec<Change>>, DbError> {
    let rows = db
        .write()
        .await?
        .query(
            "with hit as (
               update tenants set suspended_at = case when $2 then coalesce(suspended_at, now()) end where name = $1
               returning id),
             changed as (
               update api_key k set ver = ver + 1, changed_at = now() from hit
               where k.tenant_id = hit.id and k.revoked_at is null returning k.*),
             told as (
               insert into cache_outbox (key_hash, ver, op) select key_hash, ver, case when $2 then 1 else 2 end from changed
               returning id, key_hash, ver),
             event as (
               insert into events (tenant_id, kind)
               select id, case when $2 then 'tenant.suspended' else 'tenant.resumed' end from hit)
             select told.id as outbox, told.key_hash, told.ver, $2 as refused from hit left join told on true",
            &[&tenant, &suspended],
        )
        .await?;
    Ok(changes_of_hit(&rows))
}

/// `None` without a row; a row without a change has nothing to tell.
fn changes_of_hit(rows: &[Row]) -> Option<Vec<Change>> {
    let told = rows.iter().filter(|row| row.get::<_, Option<i64>>("outbox").is_some());
    (!rows.is_empty()).then(|| told.filter_map(change).collect())
}

/// The tenant's key; `tenant` `None`: any tenant's.
///
/// # Errors
/// As the database says.
pub async fn get(db: &DualDb, tenant: Option<TenantId>, key: KeyId) -> Result<Option<KeyRecord>, DbError> {
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query(
                "select k.*, u.last_used_at from api_key k left join api_key_usage u on u.key_id = k.id
                 where k.id = $1 and ($2::uuid is null or k.tenant_id = $2)",
                &[&key.uuid(), &tenant.map(TenantId::uuid)],
            )
            .await
        })
        .await?;
    Ok(rows.first().map(record))
}

/// The tenant's keys that are not revoked, newest first; `None`: of all tenants.
///
/// # Errors
/// As the database says.
pub async fn list(
    db: &DualDb,
    consistency: Consistency,
    tenant: Option<TenantId>,
    page: PageRequest,
) -> Result<Page<KeyRecord>, DbError> {
    let rows = db
        .read(consistency, |c| async move {
            c.query(
                "select k.*, u.last_used_at from api_key k left join api_key_usage u on u.key_id = k.id
                 where ($1::uuid is null or k.tenant_id = $1) and k.revoked_at is null and ($2::uuid is null or k.id < $2)
                 order by k.id desc limit $3",
                &[&tenant.map(TenantId::uuid), &page.before, &page.rows()],
            )
            .await
        })
        .await?;
    Ok(page.finish(rows.iter().map(record).collect(), |key: &KeyRecord| key.id.uuid()))
}

pub(in crate::core) fn record(row: &Row) -> KeyRecord {
    KeyRecord {
        id: KeyId::from(row.get::<_, uuid::Uuid>("id")),
        name: row.get("name"),
        tenant: TenantId::from(row.get::<_, uuid::Uuid>("tenant_id")),
        scopes: scopes(row.get("scopes")),
        hint: row.get("hint"),
        created_at: row.get("created_at"),
        expires_at: row.get("expires_at"),
        revoked_at: row.get("revoked_at"),
        last_used_at: row.get("last_used_at"),
    }
}

/// Scopes of a newer version that this one does not know grant nothing here.
fn scopes(texts: Vec<String>) -> Vec<Scope> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}
