//! Creating a key: key, idempotency record and event in one statement; and showing a created key again.
//!
//! A repeated request must get the same key, and the key must not be stored. So a key's random part is derived from a
//! random salt under the pepper, and the idempotency record holds the salt: reading the database does not reveal the
//! key, and a process that has the pepper can derive it again.

use std::sync::Arc;

use secrecy::SecretString;
use time::OffsetDateTime;
use tokio_postgres::types::Json;

use super::{
    api_key::{KeyEnv, KeyRing, NewKey},
    caller::{Caller, Scope},
    draft::KeySpec,
    error::KeyError,
    grants::{self, GrantError, Rights},
    limits::KeyLimits,
    store::KeyRecord,
};
use crate::{
    config::identity::RateLimit,
    core::{
        db::{DbError, DualDb, WriteConn, column},
        id::{KeyId, TenantId},
        idempotency::IdempotencyKey,
    },
};

const CREATE: &str = include_str!("create.sql");

/// A key created now, or by the first request with the same idempotency key.
#[derive(Debug)]
pub struct CreatedKey {
    /// The key without its text.
    pub record: KeyRecord,
    /// The key's text, which is nowhere else.
    pub key: SecretString,
    /// Whether an earlier request created it.
    pub replayed: bool,
}

/// The creator of a key.
#[derive(Clone, Copy, Debug)]
pub enum Creator<'a> {
    /// A request.
    Caller(&'a Caller),
    /// An operator with a shell on the server, who acts as an admin of this tenant.
    Operator(TenantId),
}

/// Creates keys. It needs Postgres only, so that the first key can be created before Redis runs: a new key is in no
/// cache. Requests use it through `ApiKeyService`, which also records the write.
#[derive(Clone)]
pub struct KeyCreator {
    pub(super) db: DualDb,
    pub(super) ring: Arc<KeyRing>,
    /// The limit of keys without their own.
    pub(super) general: RateLimit,
}

impl KeyCreator {
    /// Makes a creator. `general`: the limit of keys without their own.
    pub fn new(db: DualDb, ring: Arc<KeyRing>, general: RateLimit) -> Self {
        Self { db, ring, general }
    }

    /// Creates a key, or returns the one that the first request with this idempotency key created.
    ///
    /// # Errors
    /// `Grant` when the creator may not give such a key, `UnknownTenant`, `IdempotencyKeyReused`,
    /// `IdempotencyInProgress`, `ReplayLost`, or `Db`.
    pub async fn create(
        &self,
        creator: Creator<'_>,
        spec: KeySpec,
        idempotency: Option<&IdempotencyKey>,
    ) -> Result<CreatedKey, KeyError> {
        let insert = self.check(creator, spec)?;
        let created = self.insert(creator, &insert, idempotency).await?.ok_or(KeyError::UnknownTenant)?;
        if let (true, Creator::Caller(caller)) = (created.replayed, creator) {
            grants::check_display(caller, self.general, &created.record)?;
        }
        Ok(created)
    }

    fn check(&self, creator: Creator<'_>, spec: KeySpec) -> Result<Insert, GrantError> {
        let (own_tenant, created_by, inherited) = match creator {
            Creator::Caller(caller) => (caller.tenant, Some(caller.key), caller.limits),
            Creator::Operator(tenant) => (tenant, None, KeyLimits::GENERAL),
        };
        let KeySpec { name, scopes, limits, not_before, expires_at, tenant } = spec;
        // Limits are inherited; otherwise a limited key could create keys without limits.
        let limits = limits.unwrap_or(inherited);
        let tenant = tenant.unwrap_or(own_tenant);
        if let Creator::Caller(caller) = creator {
            grants::check_grants(caller, self.general, Rights { scopes: &scopes, expires_at, limits })?;
            if tenant != caller.tenant && !caller.may(Scope::Admin) {
                return Err(GrantError::Tenant);
            }
        }
        Ok(Insert { tenant, name, scopes, limits, not_before, expires_at, created_by })
    }

    async fn insert(
        &self,
        creator: Creator<'_>,
        new: &Insert,
        idempotency: Option<&IdempotencyKey>,
    ) -> Result<Option<CreatedKey>, KeyError> {
        let by = match creator {
            Creator::Caller(caller) => caller.tenant,
            Creator::Operator(tenant) => tenant,
        };
        let Derived { salt, key } = derive_new(&self.ring)?;
        let conn = self.db.write().await?;
        let rows = conn
            .query(
                CREATE,
                &[
                    &KeyId::new(),
                    &new.tenant,
                    &new.name,
                    &key.env.code(),
                    &key.hash.as_slice(),
                    &key.pepper_version,
                    &key.hint,
                    &new.scopes,
                    &new.created_by,
                    &by,
                    &idempotency.map(|key| key.key.as_str()),
                    &idempotency.map_or("", |key| key.route.as_str()),
                    &idempotency.map_or(&[][..], |key| key.request_hash.as_slice()),
                    &salt,
                    &new.expires_at,
                    &new.not_before,
                    &Json(new.limits),
                ],
            )
            .await
            .map_err(|error| in_progress(error, idempotency))?;
        if let Some(row) = rows.first() {
            let record = KeyRecord::from_row(row)?;
            return Ok(Some(CreatedKey { record, key: key.text, replayed: false }));
        }
        let Some(idempotency) = idempotency else { return Ok(None) };
        replay(&conn, &self.ring, by, idempotency).await
    }
}

/// A key to insert, all of whose fields are decided.
struct Insert {
    tenant: TenantId,
    name: String,
    scopes: Vec<Scope>,
    limits: KeyLimits,
    not_before: Option<OffsetDateTime>,
    expires_at: Option<OffsetDateTime>,
    created_by: Option<KeyId>,
}

/// Returns the key that the first request with this idempotency key created; `None`: there was no such request.
///
/// # Errors
/// `IdempotencyKeyReused`, `ReplayLost` or `Db`.
pub(super) async fn replay(
    conn: &WriteConn,
    ring: &KeyRing,
    by: TenantId,
    idempotency: &IdempotencyKey,
) -> Result<Option<CreatedKey>, KeyError> {
    let rows = conn
        .query(
            "select i.request_hash, i.answer ->> 'salt' as salt, k.key_hash,
               k.id, k.name, k.tenant_id, k.scopes, k.limits, k.hint, k.created_at, k.created_by, k.expires_at,
               k.revoked_at, k.ver as key_ver, null::timestamptz as last_used_at
             from idempotency i join api_key k on k.id = (i.answer ->> 'key_id')::uuid
             where i.tenant_id = $1 and i.route = $2 and i.key = $3 and i.created_at > now() - interval '24 hours'",
            &[&by, &idempotency.route, &idempotency.key],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(None) };
    if column::<&[u8]>(row, "request_hash")? != idempotency.request_hash.as_slice() {
        return Err(KeyError::IdempotencyKeyReused);
    }
    let key = derive(ring, column(row, "salt")?);
    // Derived under secrets that are not the newest any more, it would come out as another key.
    if column::<&[u8]>(row, "key_hash")? != key.hash.as_slice() {
        return Err(KeyError::ReplayLost);
    }
    Ok(Some(CreatedKey { record: KeyRecord::from_row(row)?, key: key.text, replayed: true }))
}

/// A key and the salt that it was derived from.
pub(super) struct Derived {
    pub salt: String,
    pub key: NewKey,
}

/// Derives a new key from a new salt.
///
/// # Errors
/// `Unavailable` when the system has no randomness.
pub(super) fn derive_new(ring: &KeyRing) -> Result<Derived, DbError> {
    let mut salt = [0u8; 32];
    getrandom::fill(&mut salt).map_err(|error| DbError::Unavailable(format!("no randomness: {error}")))?;
    let salt = data_encoding::HEXLOWER.encode(&salt);
    let key = derive(ring, &salt);
    Ok(Derived { salt, key })
}

fn derive(ring: &KeyRing, salt: &str) -> NewKey {
    let mut block = 0u64;
    let key: Result<NewKey, std::convert::Infallible> = ring.generate(KeyEnv::Live, |bytes| {
        for chunk in bytes.chunks_mut(32) {
            block += 1;
            let label = format!("api key of {salt} block {block}");
            chunk.copy_from_slice(&ring.derive(label.as_bytes())[..chunk.len()]);
        }
        Ok(())
    });
    key.unwrap_or_else(|never| match never {})
}

/// A request that waits for a lock of the first request with its idempotency key has not ended yet.
pub(super) fn in_progress(error: DbError, idempotency: Option<&IdempotencyKey>) -> KeyError {
    match error {
        DbError::Locked if idempotency.is_some() => KeyError::IdempotencyInProgress,
        other => KeyError::Db(other),
    }
}
