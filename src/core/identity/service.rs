//! The identity service: which caller does a presented key stand for?
//!
//! This is our own code. Off-the-shelf authentication middleware and API gateways cache keys for a time to live; none
//! that we found promises that a key is refused everywhere once its revocation has returned.

use std::sync::Arc;

use super::{caller::Caller, error::IdentityError};

/// Verifies keys.
pub trait IdentityService: Send + Sync {
    /// Returns the caller that the presented key stands for.
    ///
    /// # Errors
    /// `Unauthenticated` for any key that is not valid now; `Busy` or `Db` when that could not be found out.
    fn verify(&self, presented: &str) -> impl Future<Output = Result<Arc<Caller>, IdentityError>> + Send;
}
