//! `ApiKeyService`: creates, changes, rotates, revokes and shows keys, and does everything that must follow a commit.
//!
//! A change checks what the caller may grant, commits, records the write (so that the caller's next lists show it) and
//! delivers the change to the caches before it returns. Checks and commits use optimistic concurrency: the caller is
//! authorized against version n of the key, and the statement changes only version n; on a conflict the key is read
//! again and the caller is authorized anew, at most ten times.
//!
//! Where Redis does not answer, a change is committed and returns `Propagation::Pending`; see `cache::Propagator`.

use std::sync::Arc;

use super::{
    api_key::KeyRing,
    cache::{Propagation, Propagator},
    caller::Caller,
    change::{self, Target},
    create::{CreatedKey, Creator, KeyCreator},
    draft::{KeyPatch, KeySpec},
    error::KeyError,
    grants, revoke,
    rotate::{self, Rotated},
    store::{self, KeyRecord},
};
use crate::{
    config::identity::RateLimit,
    core::{
        db::{DbError, DualDb},
        id::{KeyId, TenantId},
        idempotency::IdempotencyKey,
        page::{Page, PageRequest},
        read_your_writes::ReadYourWrites,
    },
};

/// How often a change is tried when other requests change the key meanwhile.
const VERSION_CONFLICTS_MAX: usize = 10;

/// Manages keys. Cheap to clone.
#[derive(Clone)]
pub struct ApiKeyService {
    creator: KeyCreator,
    propagator: Propagator,
    read_your_writes: ReadYourWrites,
}

/// A changed key.
#[derive(Clone, Copy, Debug)]
pub struct KeyChange {
    /// Whether the change is in force everywhere.
    pub propagation: Propagation,
    /// Whether the first request with the same idempotency key made it.
    pub replayed: bool,
}

/// A rotated key.
#[derive(Debug)]
pub struct KeyRotation {
    /// The new key.
    pub new: CreatedKey,
    /// Whether the change of the old key is in force everywhere.
    pub propagation: Propagation,
}

impl ApiKeyService {
    /// Makes the service. `general`: the rate limit of keys without their own.
    pub fn new(
        db: DualDb,
        ring: Arc<KeyRing>,
        general: RateLimit,
        propagator: Propagator,
        read_your_writes: ReadYourWrites,
    ) -> Self {
        Self { creator: KeyCreator::new(db, ring, general), propagator, read_your_writes }
    }

    /// Creates a key.
    ///
    /// # Errors
    /// As for `KeyCreator::create`.
    pub async fn create(
        &self,
        caller: &Caller,
        spec: KeySpec,
        idempotency: Option<&IdempotencyKey>,
    ) -> Result<CreatedKey, KeyError> {
        let created = self.creator.create(Creator::Caller(caller), spec, idempotency).await?;
        self.read_your_writes.record_write(created.record.tenant).await;
        Ok(created)
    }

    /// Returns a key that the caller manages.
    ///
    /// # Errors
    /// `NotFound` or `Db`.
    pub async fn get(&self, caller: &Caller, key: KeyId) -> Result<KeyRecord, KeyError> {
        store::get(self.db(), caller.managed_tenant(), key).await?.ok_or(KeyError::NotFound)
    }

    /// Returns a page of a tenant's keys that are not revoked, newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list(&self, tenant: TenantId, page: PageRequest) -> Result<Page<KeyRecord>, DbError> {
        store::list(self.db(), self.read_your_writes.consistency_for(tenant).await, Some(tenant), page).await
    }

    /// Changes a key, as `get` returned it.
    ///
    /// # Errors
    /// `Grant`, `Revoked`, `Contended`, `NotFound`, `IdempotencyKeyReused`, `IdempotencyInProgress`, or `Db`.
    pub async fn change(
        &self,
        caller: &Caller,
        key: KeyRecord,
        patch: &KeyPatch,
        idempotency: Option<&IdempotencyKey>,
    ) -> Result<KeyChange, KeyError> {
        let tenant = key.tenant;
        let changed = self
            .retry_on_version_conflict(caller, key, KeyError::Revoked, async |key| {
                grants::check_change(caller, self.creator.general, key, patch)?;
                change::change(self.db(), Target::new(key, caller, idempotency), patch).await
            })
            .await?;
        self.read_your_writes.record_write(tenant).await;
        let propagation = self.propagator.propagate(&changed.invalidations, true).await;
        Ok(KeyChange { propagation, replayed: changed.replayed })
    }

    /// Puts a new key in the place of one that `get` returned. The old one is accepted for `grace_s` more seconds.
    ///
    /// # Errors
    /// As for `change`, with `RevokedOrExpired` instead of `Revoked`; and `ReplayLost`.
    pub async fn rotate(
        &self,
        caller: &Caller,
        old: KeyRecord,
        grace_s: u32,
        idempotency: Option<&IdempotencyKey>,
    ) -> Result<KeyRotation, KeyError> {
        let Rotated { new, invalidations } = self
            .retry_on_version_conflict(caller, old, KeyError::RevokedOrExpired, async |old| {
                grants::check_grants(caller, self.creator.general, old.into())?;
                rotate::rotate(self.db(), &self.creator.ring, Target::new(old, caller, idempotency), grace_s).await
            })
            .await?;
        if new.replayed {
            grants::check_display(caller, self.creator.general, &new.record)?;
        }
        self.read_your_writes.record_write(new.record.tenant).await;
        let propagation = self.propagator.propagate(&invalidations, true).await;
        Ok(KeyRotation { new, propagation })
    }

    /// Revokes a key that the caller manages. `wait`: whether to return only when no process accepts it.
    ///
    /// # Errors
    /// `NotFound` or `Db`.
    pub async fn revoke(&self, caller: &Caller, key: KeyId, wait: bool) -> Result<Propagation, KeyError> {
        let revoked = revoke::revoke(self.db(), caller, key).await?.ok_or(KeyError::NotFound)?;
        self.read_your_writes.record_write(revoked.tenant).await;
        Ok(self.propagator.propagate(&[revoked.invalidation], wait).await)
    }

    /// Runs `attempt`, which authorizes the caller for one version of the key and changes only that version. When it
    /// returns `None`, the key is read again, and the next version is tried. `unchangeable`: why the key cannot be
    /// changed when its version is still the same.
    async fn retry_on_version_conflict<T>(
        &self,
        caller: &Caller,
        mut key: KeyRecord,
        unchangeable: KeyError,
        attempt: impl AsyncFn(&KeyRecord) -> Result<Option<T>, KeyError>,
    ) -> Result<T, KeyError> {
        for _ in 0..VERSION_CONFLICTS_MAX {
            if let Some(done) = attempt(&key).await? {
                return Ok(done);
            }
            let now = self.get(caller, key.id).await?;
            if now.ver == key.ver {
                return Err(unchangeable);
            }
            key = now;
        }
        Err(KeyError::Contended)
    }

    fn db(&self) -> &DualDb {
        &self.creator.db
    }
}
