//! The identity service without caches: it reads the primary for each request.

use std::{sync::Arc, time::Instant};

use super::{
    api_key::{KeyRing, PresentedKey},
    cache::{KeyLookup, store},
    caller::Caller,
    error::IdentityError,
    meter::{self, Source},
    service::IdentityService,
};
use crate::core::db::DualDb;

/// Verifies keys with Postgres alone. A key that this cluster did not make costs no I/O, since its tag is wrong.
#[derive(Clone)]
pub struct PgIdentity {
    db: DualDb,
    ring: Arc<KeyRing>,
}

impl PgIdentity {
    /// Makes the service. `ring`: the secrets that keys are recognised with.
    pub fn new(db: DualDb, ring: Arc<KeyRing>) -> Self {
        Self { db, ring }
    }

    async fn look_up(&self, presented: &PresentedKey<'_>) -> Result<Arc<Caller>, IdentityError> {
        // A key was hashed with the newest pepper at its creation: all peppers are tried, newest first.
        for hash in self.ring.hashes(presented) {
            match store::lookup(&self.db, &hash).await? {
                KeyLookup::Valid(cached) => return Ok(cached.caller.clone()),
                KeyLookup::Refused { .. } => break,
                KeyLookup::Unknown { .. } => {}
            }
        }
        Err(IdentityError::Unauthenticated)
    }
}

impl IdentityService for PgIdentity {
    async fn verify(&self, presented: &str) -> Result<Arc<Caller>, IdentityError> {
        let started = Instant::now();
        let ours = PresentedKey::parse(presented).filter(|key| self.ring.has_valid_tag(key));
        let (source, result) = match ours {
            Some(presented) => (Source::Primary, self.look_up(&presented).await),
            None => (Source::Tag, Err(IdentityError::Unauthenticated)),
        };
        meter::record(source, started, &result);
        result
    }
}
