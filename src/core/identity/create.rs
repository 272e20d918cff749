//! Accepting `POST /keys`: key, idempotency record and event in one statement; and how a key is shown again.
//!
//! A replay must show the same key, and the key must not be stored. So with an `Idempotency-Key` its random part is
//! derived from a stored salt under the pepper: who reads the database learns nothing, and who holds the pepper can
//! make it again.

use secrecy::SecretString;

use crate::core::{
    db::{DbError, DualDb, WriteConn},
    id::TenantId,
    identity::{
        api_key::{KeyEnv, KeyRing, NewKey},
        store::{self, KeyRecord, KeySpec, key_columns},
    },
};
use crate::core::{idempotency::IdempotencyKey, instances::create::AcceptError};

/// A key accepted now, or by the first request with the same idempotency key.
#[derive(Debug)]
pub struct AcceptedKey {
    pub record: KeyRecord,
    pub key: SecretString,
    pub replayed: bool,
}

const SQL: &str = concat!(
    "
with idem as (
  insert into idempotency (tenant_id, route, key, request_hash, answer)
  select $10, $12, $11, $13, jsonb_build_object('key_id', $1::uuid, 'salt', $14::text)
  from tenants t where t.id = $2 and $11::text is not null
  on conflict (tenant_id, route, key) do update
    set request_hash = excluded.request_hash, answer = excluded.answer, created_at = now()
    where idempotency.created_at < now() - interval '24 hours'
  returning 1),
new as (
  insert into api_key as k (id, tenant_id, name, env, key_hash, pepper_v, hint, scopes, created_by, expires_at, not_before, limits)
  select $1, t.id, $3, $4, $5, $6, $7, $8, $9, $15, $16, $17 from tenants t
  where t.id = $2 and ($11::text is null or exists (select from idem))
  returning ",
    key_columns!(),
    ", k.ver),
event as (
  insert into events (tenant_id, kind, detail)
  select tenant_id, 'key.created', jsonb_build_object('key_id', id, 'by', created_by) from new)
select ",
    key_columns!(),
    ", k.ver as key_ver, null::timestamptz as last_used_at from new k"
);

/// Makes and stores a key; `None`: there is no such tenant. `by`: the tenant whose idempotency keys count.
///
/// # Errors
/// `AcceptError::KeyReused`, `KeyInProgress`, `ReplayLost` or `Db`.
pub async fn create(
    db: &DualDb,
    ring: &KeyRing,
    by: TenantId,
    spec: &KeySpec,
    idempotency: Option<&IdempotencyKey>,
) -> Result<Option<AcceptedKey>, AcceptError> {
    let (salt, key) = made(ring)?;
    let scopes: Vec<&str> = spec.scopes.iter().map(|scope| scope.as_str()).collect();
    let conn = db.write().await.map_err(AcceptError::Db)?;
    let inserted = conn
        .query(
            SQL,
            &[
                &spec.id.uuid(),
                &spec.tenant.uuid(),
                &spec.name,
                &key.env.code(),
                &key.hash.as_slice(),
                &key.pepper_version,
                &key.hint,
                &scopes,
                &spec.created_by.map(crate::core::id::KeyId::uuid),
                &by.uuid(),
                &idempotency.map(|key| key.key.as_str()),
                &idempotency.map_or("", |key| key.route.as_str()),
                &idempotency.map_or(&[][..], |key| key.request_hash.as_slice()),
                &salt,
                &spec.expires_at,
                &spec.not_before,
                &spec.limits,
            ],
        )
        .await
        .map_err(|error| match error {
            DbError::Locked if idempotency.is_some() => AcceptError::KeyInProgress,
            other => AcceptError::Db(other),
        })?;
    if let Some(row) = inserted.first() {
        return Ok(Some(AcceptedKey { record: store::record(row), key: key.text, replayed: false }));
    }
    let Some(idempotency) = idempotency else { return Ok(None) };
    replayed(&conn, ring, by, idempotency).await
}

/// The key that the first request with this idempotency key made; `None`: there was none.
pub(super) async fn replayed(
    conn: &WriteConn,
    ring: &KeyRing,
    by: TenantId,
    idempotency: &IdempotencyKey,
) -> Result<Option<AcceptedKey>, AcceptError> {
    let rows = conn
        .query(
            concat!(
                "select i.request_hash, i.answer ->> 'salt' as salt, k.key_hash, ",
                key_columns!(),
                ", k.ver as key_ver, null::timestamptz as last_used_at
                 from idempotency i join api_key k on k.id = (i.answer ->> 'key_id')::uuid
                 where i.tenant_id = $1 and i.route = $2 and i.key = $3 and i.created_at > now() - interval '24 hours'"
            ),
            &[&by.uuid(), &idempotency.route, &idempotency.key],
        )
        .await
        .map_err(AcceptError::Db)?;
    let Some(row) = rows.first() else { return Ok(None) };
    if row.get::<_, &[u8]>("request_hash") != idempotency.request_hash.as_slice() {
        return Err(AcceptError::KeyReused);
    }
    let key = derived(ring, row.get("salt"));
    // Made under secrets that are not the newest any more, it would come out as another key.
    if row.get::<_, &[u8]>("key_hash") != key.hash.as_slice() {
        return Err(AcceptError::ReplayLost);
    }
    Ok(Some(AcceptedKey { record: store::record(row), key: key.text, replayed: true }))
}

/// A new salt, and the key that belongs to it.
pub(super) fn made(ring: &KeyRing) -> Result<(String, NewKey), AcceptError> {
    let mut salt = [0u8; 32];
    getrandom::fill(&mut salt)
        .map_err(|error| AcceptError::Db(DbError::Unavailable(format!("no randomness: {error}"))))?;
    let salt = data_encoding::HEXLOWER.encode(&salt);
    let key = derived(ring, &salt);
    Ok((salt, key))
}

/// The key that belongs to a salt.
fn derived(ring: &KeyRing, salt: &str) -> NewKey {
    let mut block = 0u64;
    let made: Result<NewKey, std::convert::Infallible> = ring.make(KeyEnv::Live, |bytes| {
        for chunk in bytes.chunks_mut(32) {
            block += 1;
            let label = format!("api key of {salt} block {block}");
            chunk.copy_from_slice(&ring.derive(label.as_bytes())[..chunk.len()]);
        }
        Ok(())
    });
    made.unwrap_or_else(|never| match never {})
}
