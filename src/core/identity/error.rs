//! Why a key was not accepted, and why a key was not created or changed.

use thiserror::Error;

use super::grants::GrantError;
use crate::core::{db::DbError, invalid::Invalid};

/// Why a request's key was not accepted.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The key is missing, malformed, unknown, expired or revoked. Clients are not shown which of these it is.
    #[error("the API key is not valid")]
    Unauthenticated,
    /// Too many lookups are waiting for the primary.
    #[error("too many keys are being looked up")]
    Busy,
    /// The key could not be verified. This must not be answered as a refusal, because clients discard refused keys.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Why a key was not created, changed, rotated or revoked.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The request asks for something that no key may have.
    #[error("{} fields are invalid", .0.len())]
    Invalid(Vec<Invalid>),
    /// The caller manages no such key.
    #[error("no such key")]
    NotFound,
    /// There is no such tenant.
    #[error("no such tenant")]
    UnknownTenant,
    /// The caller may not grant what the request asks for.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// A key that is revoked cannot be changed.
    #[error("the key is revoked")]
    Revoked,
    /// A key that is revoked or expired cannot be rotated.
    #[error("the key is revoked or expired")]
    RevokedOrExpired,
    /// Other requests changed the key again and again meanwhile.
    #[error("other requests keep changing the key")]
    Contended,
    /// The idempotency key was used for another request.
    #[error("the Idempotency-Key was used for another request")]
    IdempotencyKeyReused,
    /// The first request with this idempotency key has not ended.
    #[error("the first request with this Idempotency-Key is still in progress")]
    IdempotencyInProgress,
    /// The first request created a key, but the secrets have changed since and it cannot be shown again.
    #[error("the created key can no longer be shown")]
    ReplayLost,
    /// The database failed; after a write its outcome may be unknown.
    #[error(transparent)]
    Db(#[from] DbError),
}
