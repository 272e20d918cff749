//! The identity service that was chosen at start: with caches or without (`IDENTITY_CACHE`).

use std::sync::Arc;

use super::{
    cache::CachedIdentity, caller::Caller, error::IdentityError, pg_identity::PgIdentity, service::IdentityService,
};
use crate::core::redis::RedisError;

/// An identity service of either kind.
#[derive(Clone)]
pub enum Identity {
    /// Reads the primary for each request.
    Postgres(PgIdentity),
    /// Uses Redis and the process's memory.
    Cached(CachedIdentity),
}

impl IdentityService for Identity {
    async fn verify(&self, presented: &str) -> Result<Arc<Caller>, IdentityError> {
        match self {
            Self::Postgres(identity) => identity.verify(presented).await,
            Self::Cached(identity) => identity.verify(presented).await,
        }
    }
}

impl Identity {
    /// Connects the calling thread to Redis, where the service uses it.
    ///
    /// # Errors
    /// When a client cannot be built.
    pub fn open_thread(&self) -> Result<(), RedisError> {
        match self {
            Self::Postgres(_) => Ok(()),
            Self::Cached(identity) => identity.open_thread(),
        }
    }

    /// Writes what is still in memory; to be called before the process ends.
    pub async fn stop(&self) {
        if let Self::Cached(identity) = self {
            identity.stop().await;
        }
    }

    /// Returns whether a key accepted now may have been revoked a while ago; see `CachedIdentity::is_stale`.
    pub fn is_stale(&self) -> bool {
        match self {
            Self::Postgres(_) => false,
            Self::Cached(identity) => identity.is_stale(),
        }
    }
}
