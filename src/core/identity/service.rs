//! The question "whose key is this?", answered by the primary.

use std::sync::Arc;

use subtle::ConstantTimeEq;

use super::{
    Caller, IdentityError,
    api_key::{KeyRing, Presented},
    store,
};
use crate::core::db::DualDb;

/// Answers whose key was presented.
pub trait IdentityService: Send + Sync {
    /// # Errors
    /// `Unauthenticated` for any key that is not good now; `Unavailable` when that could not be found out.
    fn verify(&self, presented: &str) -> impl Future<Output = Result<Caller, IdentityError>> + Send;
}

/// Asks Postgres each time. A key that we did not make costs no I/O: its tag is wrong.
#[derive(Clone)]
pub struct PgIdentity {
    db: DualDb,
    ring: Arc<KeyRing>,
}

impl PgIdentity {
    pub fn new(db: DualDb, ring: Arc<KeyRing>) -> Self {
        Self { db, ring }
    }
}

impl IdentityService for PgIdentity {
    async fn verify(&self, presented: &str) -> Result<Caller, IdentityError> {
        let presented = Presented::parse(presented).ok_or(IdentityError::Unauthenticated)?;
        if !self.ring.is_ours(&presented) {
            return Err(IdentityError::Unauthenticated);
        }
        // A key was hashed with the pepper of its day: try them all, newest first.
        for hash in self.ring.hashes(&presented) {
            if let Some((stored, caller)) = store::valid_by_hash(&self.db, hash).await? {
                let same: bool = stored.as_slice().ct_eq(&hash).into();
                return if same { Ok(caller) } else { Err(IdentityError::Unauthenticated) };
            }
        }
        Err(IdentityError::Unauthenticated)
    }
}
