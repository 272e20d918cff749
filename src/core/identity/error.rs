//! Why a key was not accepted, or could not be managed.

use thiserror::Error;

use crate::core::db::DbError;

#[derive(Debug, Error)]
pub enum IdentityError {
    /// Missing, malformed, unknown, expired or revoked: deliberately not told apart.
    #[error("the API key is not valid")]
    Unauthenticated,
    /// Too many ask the primary at once: later.
    #[error("too many keys are being looked up")]
    Busy,
    /// It could not be found out. Never to be shown as a refusal: clients throw keys away on those.
    #[error(transparent)]
    Db(#[from] DbError),
}
