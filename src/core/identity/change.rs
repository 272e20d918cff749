//! Changing a key: change, idempotency record, outbox row and event in one statement.
//!
//! The caller is authorized before, against one version of the key; the statement changes only that version, so a
//! change in between is detected. A repeated request gets the present state of the key that the first one changed.

use serde::de::IgnoredAny;
use tokio_postgres::types::Json;

use super::{
    caller::Caller,
    create,
    draft::KeyPatch,
    error::KeyError,
    invalidation::Invalidation,
    store::{self, KeyRecord},
};
use crate::core::{
    db::DualDb,
    id::{KeyId, TenantId},
    idempotency::{self, IdempotencyKey, NoReplay},
};

const CHANGE: &str = include_str!("change.sql");

/// The version of a key to change, and the request that changes it.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub key: KeyId,
    /// The version that the caller was authorized for.
    pub ver: i64,
    /// The tenant that must own the key; `None`: any.
    pub tenant: Option<TenantId>,
    pub by: &'a Caller,
    pub idempotency: Option<&'a IdempotencyKey>,
}

impl<'a> Target<'a> {
    /// Targets the version of `key` that was read.
    pub fn new(key: &KeyRecord, by: &'a Caller, idempotency: Option<&'a IdempotencyKey>) -> Self {
        Self { key: key.id, ver: key.ver, tenant: by.managed_tenant(), by, idempotency }
    }
}

/// A change made now, or by the first request with the same idempotency key.
pub(super) struct Changed {
    pub invalidations: Vec<Invalidation>,
    pub replayed: bool,
}

/// Changes the key; `None`: it has another version now, or is revoked.
///
/// # Errors
/// `IdempotencyKeyReused`, `IdempotencyInProgress` or `Db`.
pub(super) async fn change(db: &DualDb, target: Target<'_>, patch: &KeyPatch) -> Result<Option<Changed>, KeyError> {
    let conn = db.write().await?;
    let rows = conn
        .query(
            CHANGE,
            &[
                &target.key,
                &target.tenant,
                &target.by.key,
                &patch.name,
                &patch.scopes,
                &patch.expires_at.is_some(),
                &patch.expires_at.flatten(),
                &target.by.tenant,
                &target.idempotency.map(|key| key.key.as_str()),
                &target.idempotency.map_or("", |key| key.route.as_str()),
                &target.idempotency.map_or(&[][..], |key| key.request_hash.as_slice()),
                &patch.limits.map(Json),
                &target.ver,
            ],
        )
        .await
        .map_err(|error| create::in_progress(error, target.idempotency))?;
    if let Some(row) = rows.first() {
        return Ok(Some(Changed { invalidations: vec![Invalidation::from_row(row)?], replayed: false }));
    }
    let Some(idempotency) = target.idempotency else { return Ok(None) };
    match idempotency::answer(&conn, target.by.tenant, idempotency).await? {
        Ok(IgnoredAny) => {
            let invalidations = store::current_invalidation(&conn, target.key).await?;
            Ok(Some(Changed { invalidations, replayed: true }))
        }
        Err(NoReplay::Reused) => Err(KeyError::IdempotencyKeyReused),
        Err(NoReplay::InProgress) => Ok(None),
    }
}
