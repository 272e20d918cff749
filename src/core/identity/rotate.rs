//! Rotating a key: a new key with the same name, scopes, expiry and limits takes the place of the old one.

use super::{
    api_key::KeyRing,
    change::Target,
    create::{self, CreatedKey, Derived},
    error::KeyError,
    invalidation::Invalidation,
    store::{self, KeyRecord},
};
use crate::core::{db::DualDb, id::KeyId};

const ROTATE: &str = include_str!("rotate.sql");

/// A rotation made now, or by the first request with the same idempotency key.
pub(super) struct Rotated {
    pub new: CreatedKey,
    /// The change of the old key.
    pub invalidations: Vec<Invalidation>,
}

/// Rotates the key; the old one is refused at once or, with a grace, in so many seconds. `None`: the old key has
/// another version now, or is revoked or expired.
///
/// # Errors
/// `IdempotencyKeyReused`, `IdempotencyInProgress`, `ReplayLost` or `Db`.
pub(super) async fn rotate(
    db: &DualDb,
    ring: &KeyRing,
    target: Target<'_>,
    grace_s: u32,
) -> Result<Option<Rotated>, KeyError> {
    let Derived { salt, key } = create::derive_new(ring)?;
    let conn = db.write().await?;
    let rows = conn
        .query(
            ROTATE,
            &[
                &target.key,
                &target.tenant,
                &target.by.key,
                &KeyId::new(),
                &key.env.code(),
                &key.hash.as_slice(),
                &key.pepper_version,
                &key.hint,
                &f64::from(grace_s),
                &target.by.tenant,
                &target.idempotency.map(|key| key.key.as_str()),
                &target.idempotency.map_or("", |key| key.route.as_str()),
                &target.idempotency.map_or(&[][..], |key| key.request_hash.as_slice()),
                &salt,
                &target.ver,
            ],
        )
        .await
        .map_err(|error| create::in_progress(error, target.idempotency))?;
    if let Some(row) = rows.first() {
        let new = CreatedKey { record: KeyRecord::from_row(row)?, key: key.text, replayed: false };
        return Ok(Some(Rotated { new, invalidations: vec![Invalidation::from_row(row)?] }));
    }
    let Some(idempotency) = target.idempotency else { return Ok(None) };
    let Some(new) = create::replay(&conn, ring, target.by.tenant, idempotency).await? else { return Ok(None) };
    Ok(Some(Rotated { new, invalidations: store::current_invalidation(&conn, target.key).await? }))
}
