//! `CachedIdentity`: verifies keys with the process's own map, then Redis, then the primary; runs the background loops.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::{
    entry::EntrySigner,
    invalidations,
    key::{CachedKey, KeyLookup, short_hash},
    l1::L1,
    lookup::Lookups,
    propagate::Propagator,
    redis_tier::RedisTier,
    usage::Usage,
};
use crate::{
    config::redis::RedisConfig,
    core::{
        db::DualDb,
        id::ClusterId,
        identity::{
            api_key::{KeyRing, PresentedKey},
            caller::Caller,
            error::IdentityError,
            meter::{self, Source},
            service::IdentityService,
        },
        redis::RedisError,
    },
};

/// The parts that `CachedIdentity` is built from.
pub struct Start<'a> {
    /// Postgres.
    pub db: DualDb,
    /// The address of Redis.
    pub redis: &'a RedisConfig,
    /// The cluster, which is part of every Redis key.
    pub cluster: ClusterId,
    /// The secrets that keys are recognised with.
    pub ring: Arc<KeyRing>,
    /// The signer of values in Redis.
    pub signer: EntrySigner,
    /// Whether keys are kept in the process.
    pub l1: bool,
    /// Reads of the primary at a time: a part of its pool, so that lookups never take every connection.
    pub primary_reads: usize,
}

/// The identity service with caches. Cheap to clone.
#[derive(Clone)]
pub struct CachedIdentity(Arc<Inner>);

struct Inner {
    ring: Arc<KeyRing>,
    lookups: Arc<Lookups>,
    propagator: Propagator,
    usage: Usage,
    /// The name of this process in Redis.
    process: String,
}

impl CachedIdentity {
    /// Builds the service. It reads nothing until `run`.
    ///
    /// # Errors
    /// When a Redis client cannot be built; not when Redis does not answer.
    pub fn new(start: Start<'_>) -> Result<Self, RedisError> {
        let tier = RedisTier::new(start.redis, start.cluster)?;
        let (signer, l1) = (Arc::new(start.signer), Arc::new(L1::new()));
        Ok(Self(Arc::new(Inner {
            propagator: Propagator::new(start.db.clone(), tier.clone(), signer.clone(), l1.clone()),
            lookups: Arc::new(Lookups::new(start.db, signer, tier, l1, start.l1, start.primary_reads)),
            ring: start.ring,
            usage: Usage::new(),
            process: Uuid::new_v4().simple().to_string(),
        })))
    }

    /// Returns the part that delivers changes of keys.
    pub fn propagator(&self) -> Propagator {
        self.0.propagator.clone()
    }

    /// Connects the calling thread to Redis, so that its first verification does not wait for a connection.
    ///
    /// # Errors
    /// When a client cannot be built.
    pub fn open_thread(&self) -> Result<(), RedisError> {
        self.0.lookups.tier.open_thread()
    }

    /// Reads the version feed once, so that the first requests can use Redis.
    pub async fn refresh_once(&self) {
        self.0.lookups.feed.refresh(&self.0.lookups.db).await;
    }

    /// Runs the loops until the task is cancelled: invalidation log, version feed and uses.
    pub async fn run(&self) {
        let (inner, lookups) = (&self.0, &self.0.lookups);
        let process = lookups.l1_on.then_some(inner.process.as_str());
        let log = invalidations::run(&lookups.tier, &lookups.l1, process, || lookups.clock());
        tokio::join!(log, lookups.feed.run(&lookups.db), inner.usage.run(&lookups.db));
    }

    /// Sets the gauges of the caches and of the outbox.
    pub fn report(&self) {
        let lookups = &self.0.lookups;
        lookups.feed.report();
        self.0.propagator.report(Instant::now());
        #[allow(clippy::cast_precision_loss, reason = "bounded by the map's size")]
        metrics::gauge!("identity_l1_entries").set(lookups.l1.len() as f64);
        if lookups.l1_on {
            let age = lookups.l1.fence_age(lookups.clock()).map(Duration::from_millis);
            metrics::gauge!("identity_l1_fence_age_seconds").set(age.map_or(f64::INFINITY, |age| age.as_secs_f64()));
        }
        metrics::gauge!("identity_redis_breaker_state").set(if lookups.tier.is_broken() { 1.0 } else { 0.0 });
    }

    /// Returns whether the version feed is old: a key accepted now may have been revoked in Postgres and not in Redis.
    pub fn is_stale(&self) -> bool {
        !self.0.lookups.feed.is_fresh()
    }

    /// Writes uses and unregisters the process; to be called before it ends.
    pub async fn stop(&self) {
        self.0.usage.flush(&self.0.lookups.db).await;
        if let Err(error) = self.0.lookups.tier.unregister(&self.0.process).await {
            tracing::debug!(%error, "cannot unregister from redis; revocations wait for this process for one second");
        }
    }
}

impl IdentityService for CachedIdentity {
    async fn verify(&self, presented: &str) -> Result<Arc<Caller>, IdentityError> {
        let started = Instant::now();
        let (source, result) = self.0.verify(presented).await;
        meter::record(source, started, &result);
        if let Ok(caller) = &result {
            self.0.usage.count(caller.key);
        }
        result
    }
}

impl Inner {
    async fn verify(&self, presented: &str) -> (Source, Result<Arc<Caller>, IdentityError>) {
        let mut source = Source::Tag;
        let Some(presented) = PresentedKey::parse(presented).filter(|key| self.ring.has_valid_tag(key)) else {
            return (source, Err(IdentityError::Unauthenticated));
        };
        // A key was hashed with the newest pepper at its creation. The hashes under all peppers are tried in the
        // process before one is looked up elsewhere.
        if let Some(cached) = self.ring.hashes(&presented).find_map(|hash| self.get_from_process(&hash)) {
            return (Source::Process, Ok(cached.caller.clone()));
        }
        let mut refusal = IdentityError::Unauthenticated;
        for hash in self.ring.hashes(&presented) {
            // Boxed, here and below, to keep the future of a request that needs less small.
            let (looked_up, result) = Box::pin(self.lookups.lookup(&hash)).await;
            source = looked_up;
            match result {
                Ok(KeyLookup::Valid(cached)) => return (source, Ok(cached.caller.clone())),
                Ok(KeyLookup::Refused { .. }) => return (source, Err(IdentityError::Unauthenticated)),
                Ok(KeyLookup::Unknown { .. }) => {}
                // The key may still be found by its hash under another pepper.
                Err(error) => refusal = error,
            }
        }
        (source, Err(refusal))
    }

    fn get_from_process(&self, hash: &[u8; 32]) -> Option<Arc<CachedKey>> {
        let lookups = &self.lookups;
        if !lookups.l1_on {
            return None;
        }
        let cached = lookups.l1.get(&short_hash(hash), || lookups.clock())?;
        (lookups.is_current(&cached) && bool::from(cached.hash.ct_eq(hash))).then_some(cached)
    }
}
