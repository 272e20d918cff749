//! Accepting `PATCH /keys/{id}` and `POST /keys/{id}/rotate`: change, idempotency record, outbox and event in one statement.
//!
//! The key's row is locked first, so that of two requests with one idempotency key the second finds the record of the
//! first. Whether the caller may is judged before, of the key as it was read; so the statement finds only a key that is
//! still that version. A repeated request answers what the first one led to, and hands out the change once more: whoever committed
//! it may have died before anybody was told.

use time::OffsetDateTime;

use super::create::{self, AcceptedKey};
use crate::core::{
    db::{DbError, DualDb, WriteConn},
    id::{KeyId, TenantId},
    identity::{
        Caller, Scope,
        api_key::KeyRing,
        cache::store::{Change, change},
        store::{self, key_columns},
    },
};
use crate::core::{
    idempotency::{self, IdempotencyKey, NoReplay},
    instances::create::AcceptError,
};

/// Which key is changed, and by whom.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub key: KeyId,
    /// As which it was judged; changed since, it is not found.
    pub ver: i64,
    /// Whose keys the caller manages; `None`: any tenant's.
    pub tenant: Option<TenantId>,
    pub by: &'a Caller,
    pub idempotency: Option<&'a IdempotencyKey>,
}

/// What a change of a key sets; `None`: as it is.
#[derive(Clone, Debug, Default)]
pub struct KeyPatch {
    pub name: Option<String>,
    pub scopes: Option<Vec<Scope>>,
    /// `Some(None)`: it never expires.
    pub expires_at: Option<Option<OffsetDateTime>>,
    /// `{}`: the general limits.
    pub limits: Option<serde_json::Value>,
}

/// A change accepted now, or by the first request with the same idempotency key.
pub struct Patched {
    /// Of which everybody has to be told.
    pub changes: Vec<Change>,
    pub replayed: bool,
}

const PATCH: &str = "
with hit as (
  select id, tenant_id, name, scopes, expires_at, limits from api_key
  where id = $1 and ($2::uuid is null or tenant_id = $2) and ver = $13 and revoked_at is null
  for update),
idem as (
  insert into idempotency (tenant_id, route, key, request_hash, answer)
  select $8, $10, $9, $11, jsonb_build_object('key_id', id) from hit where $9::text is not null
  on conflict (tenant_id, route, key) do update
    set request_hash = excluded.request_hash, answer = excluded.answer, created_at = now()
    where idempotency.created_at < now() - interval '24 hours'
  returning 1),
changed as (
  update api_key k set name = coalesce($4, k.name), scopes = coalesce($5, k.scopes), limits = coalesce($12, k.limits),
    expires_at = case when $6 then $7 else k.expires_at end, ver = k.ver + 1, changed_at = now()
  from hit where k.id = hit.id and ($9::text is null or exists (select from idem))
  returning k.id, k.tenant_id, k.key_hash, k.ver, k.name, k.scopes, k.expires_at, k.limits),
told as (insert into cache_outbox (key_hash, ver, op) select key_hash, ver, 2 from changed returning id),
event as (
  insert into events (tenant_id, kind, detail)
  select tenant_id, 'key.changed', jsonb_build_object('key_id', id, 'by', $3::uuid,
    'name', k.name, 'scopes', k.scopes, 'expires_at', k.expires_at, 'limits', k.limits,
    'was', jsonb_build_object('name', hit.name, 'scopes', hit.scopes, 'expires_at', hit.expires_at, 'limits', hit.limits))
  from changed k join hit using (id, tenant_id))
select told.id as outbox, changed.key_hash, changed.ver, false as refused from changed, told";

/// Changes the key. `None`: there is none of this version that is not revoked.
///
/// # Errors
/// `AcceptError::KeyReused`, `KeyInProgress` or `Db`.
pub async fn patch(db: &DualDb, target: Target<'_>, patch: &KeyPatch) -> Result<Option<Patched>, AcceptError> {
    let scopes: Option<Vec<&str>> = patch.scopes.as_ref().map(|all| all.iter().map(|scope| scope.as_str()).collect());
    let conn = db.write().await.map_err(AcceptError::Db)?;
    let rows = conn
        .query(
            PATCH,
            &[
                &target.key.uuid(),
                &target.tenant.map(TenantId::uuid),
                &target.by.key.uuid(),
                &patch.name,
                &scopes,
                &patch.expires_at.is_some(),
                &patch.expires_at.flatten(),
                &target.by.tenant.uuid(),
                &target.idempotency.map(|key| key.key.as_str()),
                &target.idempotency.map_or("", |key| key.route.as_str()),
                &target.idempotency.map_or(&[][..], |key| key.request_hash.as_slice()),
                &patch.limits,
                &target.ver,
            ],
        )
        .await
        .map_err(|error| locked(error, target))?;
    if let Some(row) = rows.first() {
        return Ok(Some(Patched { changes: change(row).into_iter().collect(), replayed: false }));
    }
    let Some(idempotency) = target.idempotency else { return Ok(None) };
    match idempotency::answer(&conn, target.by.tenant, idempotency).await.map_err(AcceptError::Db)? {
        Ok(_) => Ok(Some(Patched { changes: again(&conn, target.key).await?, replayed: true })),
        Err(NoReplay::Reused) => Err(AcceptError::KeyReused),
        Err(NoReplay::InProgress) => Ok(None),
    }
}

/// A key in the place of another.
pub struct Rotated {
    pub new: AcceptedKey,
    /// Of the old one: everybody has to be told.
    pub changes: Vec<Change>,
}

/// The tenant is locked before the key, as the new key's reference to it would do after: a suspension comes that way.
const ROTATE: &str = concat!(
    "
with tenant as materialized (
  select id from tenants where id = (select tenant_id from api_key where id = $1) for key share),
hit as (
  select k.id, k.tenant_id, k.name, k.scopes, k.limits, k.not_before, k.expires_at from tenant join api_key k on k.tenant_id = tenant.id
  where k.id = $1 and ($2::uuid is null or k.tenant_id = $2) and k.ver = $15
    and k.revoked_at is null and (k.expires_at is null or k.expires_at > now()) for update of k),
idem as (
  insert into idempotency (tenant_id, route, key, request_hash, answer)
  select $10, $12, $11, $13, jsonb_build_object('key_id', $4::uuid, 'salt', $14::text) from hit where $11::text is not null
  on conflict (tenant_id, route, key) do update
    set request_hash = excluded.request_hash, answer = excluded.answer, created_at = now()
    where idempotency.created_at < now() - interval '24 hours'
  returning 1),
todo as (
  select id, tenant_id, name, scopes, limits, not_before, expires_at from hit
  where $11::text is null or exists (select from idem)),
old as (
  update api_key k set ver = k.ver + 1, changed_at = now(),
    revoked_at = case when $9::float8 > 0 then null else now() end, revoked_by = case when $9::float8 > 0 then null else $3::uuid end,
    expires_at = case when $9::float8 > 0 then least(k.expires_at, now() + make_interval(secs => $9::float8)) else k.expires_at end
  from todo where k.id = todo.id returning k.id, k.tenant_id, k.key_hash, k.ver),
new as (
  insert into api_key as k (id, tenant_id, name, env, key_hash, pepper_v, hint, scopes, limits, created_by,
                            not_before, expires_at, rotated_from)
  select $4, tenant_id, name, $5, $6, $7, $8, scopes, limits, $3, not_before, expires_at, id from todo
  returning ",
    key_columns!(),
    ", k.ver),
told as (
  insert into cache_outbox (key_hash, ver, op) select key_hash, ver, case when $9::float8 > 0 then 2 else 1 end from old
  returning id),
event as (
  insert into events (tenant_id, kind, detail)
  select tenant_id, 'key.rotated', jsonb_build_object('key_id', id, 'by', $3::uuid, 'new_key_id', $4::uuid) from old)
select ",
    key_columns!(),
    ", k.ver as key_ver, null::timestamptz as last_used_at,
       told.id as outbox, old.key_hash, old.ver, $9::float8 <= 0 as refused
from new k, old, told"
);

/// Puts a new key in the place of the key, which is refused at once or, with a grace, in so many seconds. `None`: there
/// is none of this version that is good. The new key inherits name, scopes, expiry and limits.
///
/// # Errors
/// `AcceptError::KeyReused`, `KeyInProgress`, `ReplayLost` or `Db`.
pub async fn rotate(
    db: &DualDb,
    ring: &KeyRing,
    target: Target<'_>,
    grace_s: u32,
) -> Result<Option<Rotated>, AcceptError> {
    let (salt, new) = create::made(ring)?;
    let conn = db.write().await.map_err(AcceptError::Db)?;
    let rows = conn
        .query(
            ROTATE,
            &[
                &target.key.uuid(),
                &target.tenant.map(TenantId::uuid),
                &target.by.key.uuid(),
                &KeyId::new().uuid(),
                &new.env.code(),
                &new.hash.as_slice(),
                &new.pepper_version,
                &new.hint,
                &f64::from(grace_s),
                &target.by.tenant.uuid(),
                &target.idempotency.map(|key| key.key.as_str()),
                &target.idempotency.map_or("", |key| key.route.as_str()),
                &target.idempotency.map_or(&[][..], |key| key.request_hash.as_slice()),
                &salt,
                &target.ver,
            ],
        )
        .await
        .map_err(|error| locked(error, target))?;
    if let Some(row) = rows.first() {
        let new = AcceptedKey { record: store::record(row), key: new.text, replayed: false };
        return Ok(Some(Rotated { new, changes: change(row).into_iter().collect() }));
    }
    let Some(idempotency) = target.idempotency else { return Ok(None) };
    let Some(new) = create::replayed(&conn, ring, target.by.tenant, idempotency).await? else { return Ok(None) };
    Ok(Some(Rotated { new, changes: again(&conn, target.key).await? }))
}

/// What everybody has to be told of a key as it is now.
async fn again(conn: &WriteConn, key: KeyId) -> Result<Vec<Change>, AcceptError> {
    let sql = "select 0::bigint as outbox, key_hash, ver, revoked_at is not null as refused from api_key where id = $1";
    let rows = conn.query(sql, &[&key.uuid()]).await.map_err(AcceptError::Db)?;
    Ok(rows.iter().filter_map(change).collect())
}

fn locked(error: DbError, target: Target<'_>) -> AcceptError {
    match error {
        DbError::Locked if target.idempotency.is_some() => AcceptError::KeyInProgress,
        other => AcceptError::Db(other),
    }
}
