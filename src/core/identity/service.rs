//! The question "whose key is this?", answered by the primary.

use std::{sync::Arc, time::Instant};

use super::{
    Caller, IdentityError,
    api_key::{KeyRing, Presented},
    cache::{
        CachedIdentity, KeyLookup, Propagation, Revoker,
        store::{self, Change},
    },
    meter::{self, Source},
};
use crate::core::db::DualDb;

/// Answers whose key was presented.
pub trait IdentityService: Send + Sync {
    /// # Errors
    /// `Unauthenticated` for any key that is not good now; `Unavailable` when that could not be found out.
    fn verify(&self, presented: &str) -> impl Future<Output = Result<Arc<Caller>, IdentityError>> + Send;
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

/// The one that was chosen at start. Changes are told in either case: other processes may keep keys.
#[derive(Clone)]
pub enum Identity {
    Postgres(PgIdentity, Revoker),
    Cached(CachedIdentity),
}

impl IdentityService for Identity {
    async fn verify(&self, presented: &str) -> Result<Arc<Caller>, IdentityError> {
        match self {
            Self::Postgres(identity, _) => identity.verify(presented).await,
            Self::Cached(identity) => identity.verify(presented).await,
        }
    }
}

impl Identity {
    /// Tells everybody of changes that are committed.
    pub async fn propagate(&self, changes: &[Change], wait: bool) -> Propagation {
        match self {
            Self::Postgres(_, revoker) => revoker.propagate(changes, wait).await,
            Self::Cached(identity) => identity.revoker().propagate(changes, wait).await,
        }
    }

    /// Before the process ends.
    pub async fn stop(&self) {
        if let Self::Cached(identity) = self {
            identity.stop().await;
        }
    }

    /// Whether what is accepted now may have been revoked a while ago: see `CachedIdentity::is_stale`.
    pub fn is_stale(&self) -> bool {
        match self {
            Self::Postgres(..) => false,
            Self::Cached(identity) => identity.is_stale(),
        }
    }
}

impl IdentityService for PgIdentity {
    async fn verify(&self, presented: &str) -> Result<Arc<Caller>, IdentityError> {
        let started = Instant::now();
        let ours = Presented::parse(presented).filter(|presented| self.ring.is_ours(presented));
        let (source, result) = match ours {
            Some(presented) => (Source::Primary, self.ask(&presented).await),
            None => (Source::Tag, Err(IdentityError::Unauthenticated)),
        };
        meter::record(source, started, &result);
        result
    }
}

impl PgIdentity {
    async fn ask(&self, presented: &Presented<'_>) -> Result<Arc<Caller>, IdentityError> {
        // A key was hashed with the pepper of its day: try them all, newest first.
        for hash in self.ring.hashes(presented) {
            match store::fact(&self.db, &hash).await? {
                KeyLookup::Valid(cached) => return Ok(cached.caller.clone()),
                KeyLookup::Refused { .. } => break,
                KeyLookup::Unknown { .. } => {}
            }
        }
        Err(IdentityError::Unauthenticated)
    }
}
