//! Revoking a key: revocation, outbox row and event in one statement. Revoking a key again does the same once more.

use super::{caller::Caller, invalidation::Invalidation};
use crate::core::{
    db::{DbError, DualDb, column},
    id::{KeyId, TenantId},
};

const REVOKE: &str = include_str!("revoke.sql");

/// A revocation that is committed.
pub(super) struct Revoked {
    /// The tenant that owns the key.
    pub tenant: TenantId,
    pub invalidation: Invalidation,
}

/// Revokes a key that the caller manages; `None`: there is none.
///
/// # Errors
/// As for `WriteConn::query`.
pub(super) async fn revoke(db: &DualDb, by: &Caller, key: KeyId) -> Result<Option<Revoked>, DbError> {
    let rows = db.write().await?.query(REVOKE, &[&key, &by.managed_tenant(), &by.key]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(Revoked { tenant: column(row, "tenant_id")?, invalidation: Invalidation::from_row(row)? }))
}
