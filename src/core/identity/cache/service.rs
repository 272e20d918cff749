//! `CachedIdentity`: the service that asks the process, then Redis, then the primary, and drives `verify`.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::{
    CachedKey, KeyHash, KeyLookup,
    entry::{self, CasToken, EntrySigner, Found, VALID_MS},
    feed::Feed,
    invalidations,
    l1::{L1, Snapshot},
    name_of,
    redis_tier::RedisTier,
    revoke::OutboxCounts,
    single_flight::{Seat, SingleFlight, completed},
    store,
    usage::Usage,
    verify::{Action, Answer, Event, Refusal, Verification},
};
use crate::{
    config::redis::RedisConfig,
    core::{
        db::{DbError, DualDb},
        id::ClusterId,
        identity::{
            Caller, IdentityError, IdentityService,
            api_key::{KeyRing, Presented},
            meter::{self, Source},
        },
        redis::RedisError,
    },
};

/// How long a verification waits for a turn at the primary. Longer if its answer will be kept: then the queue empties
/// once and for all, as when a thousand clients come back at the same time.
pub(super) const QUEUE: Duration = Duration::from_millis(100);
const QUEUE_TO_FILL: Duration = Duration::from_secs(1);
/// Unknown keys that are remembered in Redis per second and process.
const UNKNOWN_PER_SECOND: u32 = 100;

/// What it is made of.
pub struct Start<'a> {
    pub db: DualDb,
    pub redis: &'a RedisConfig,
    pub cluster: ClusterId,
    pub ring: Arc<KeyRing>,
    pub signer: EntrySigner,
    /// Whether keys are kept in the process.
    pub l1: bool,
    /// Reads of the primary at a time: a part of its pool, so that they never take all of it.
    pub primary_reads: usize,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct CachedIdentity(Arc<Inner>);

pub(super) struct Inner {
    pub db: DualDb,
    pub ring: Arc<KeyRing>,
    pub signer: EntrySigner,
    pub tier: RedisTier,
    pub l1: L1,
    pub l1_on: bool,
    pub feed: Feed,
    pub usage: Usage,
    pub outbox: OutboxCounts,
    pub instance: String,
    flights: SingleFlight<Result<KeyLookup, String>>,
    primary_reads: Semaphore,
    pub(super) refreshing: Mutex<HashSet<KeyHash>>,
    unknown: Mutex<(Instant, u32)>,
    started: Instant,
}

impl Refusal for KeyLookup {
    fn unknown() -> Self {
        Self::Unknown { until_s: None }
    }

    fn refused() -> Self {
        Self::Refused { ver: 0 }
    }
}

impl CachedIdentity {
    /// # Errors
    /// When a Redis client cannot be built; not when Redis is away.
    pub fn new(start: Start<'_>) -> Result<Self, RedisError> {
        Ok(Self(Arc::new(Inner {
            tier: RedisTier::new(start.redis, start.cluster)?,
            db: start.db,
            ring: start.ring,
            signer: start.signer,
            l1: L1::new(),
            l1_on: start.l1,
            feed: Feed::default(),
            usage: Usage::new(),
            outbox: OutboxCounts::new(),
            instance: Uuid::new_v4().simple().to_string(),
            flights: SingleFlight::new(),
            primary_reads: Semaphore::new(start.primary_reads.max(1)),
            refreshing: Mutex::default(),
            unknown: Mutex::new((Instant::now(), 0)),
            started: Instant::now(),
        })))
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }

    /// Hears news once, so that the first requests need not go to the primary.
    pub async fn ask_once(&self) {
        self.0.feed.ask(&self.0.db).await;
    }

    /// Hears news for ever: the log, the feed, and the writing of uses.
    pub async fn run(&self) {
        let inner = &self.0;
        let news = invalidations::run(&inner.tier, &inner.l1, inner.l1_on, &inner.instance, || inner.clock());
        tokio::join!(news, inner.feed.run(&inner.db), inner.usage.run(&inner.db));
    }

    /// Sets the gauges of the cache and of the outbox.
    pub fn report(&self) {
        let inner = &self.0;
        inner.feed.report();
        inner.outbox.report(Instant::now());
        #[allow(clippy::cast_precision_loss, reason = "bounded by the map's size")]
        metrics::gauge!("identity_l1_entries").set(inner.l1.len() as f64);
        if inner.l1_on {
            let age = inner.l1.fence_age(inner.clock()).map(Duration::from_millis);
            metrics::gauge!("identity_l1_fence_age_seconds").set(age.map_or(f64::INFINITY, |age| age.as_secs_f64()));
        }
        metrics::gauge!("identity_redis_breaker_state").set(if inner.tier.is_broken() { 1.0 } else { 0.0 });
    }

    /// Whether the primary has not told for a while which keys changed: what is accepted now may have been revoked in
    /// Postgres and not in Redis.
    pub fn is_stale(&self) -> bool {
        !self.0.feed.is_fresh()
    }

    /// Before the process ends: writes uses, and nobody waits for it any more.
    pub async fn stop(&self) {
        self.0.usage.flush(&self.0.db).await;
        if let Err(error) = self.0.tier.forget(&self.0.instance).await {
            tracing::debug!(%error, "could not take leave from redis; it is forgotten after a second");
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
    /// Milliseconds of a monotonic clock; never 0.
    pub fn clock(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    async fn verify(self: &Arc<Self>, presented: &str) -> (Source, Result<Arc<Caller>, IdentityError>) {
        let mut source = Source::Tag;
        let Some(presented) = Presented::parse(presented).filter(|presented| self.ring.is_ours(presented)) else {
            return (source, Err(IdentityError::Unauthenticated));
        };
        // A key was hashed with the pepper of its day. Nobody is asked about the newest while the process knows another.
        if let Some(cached) = self.ring.hashes(&presented).find_map(|hash| self.kept(&hash)) {
            return (Source::Process, Ok(cached.caller.clone()));
        }
        let mut verdict = IdentityError::Unauthenticated;
        for hash in self.ring.hashes(&presented) {
            // Boxed, here and below: a request that needs less should not carry room for more.
            let (asked, result) = Box::pin(self.ask(&hash)).await;
            source = asked;
            match result {
                Ok(KeyLookup::Valid(cached)) => return (source, Ok(cached.caller.clone())),
                Ok(KeyLookup::Refused { .. }) => return (source, Err(IdentityError::Unauthenticated)),
                Ok(KeyLookup::Unknown { .. }) => {}
                // Under another pepper it may be known all the same.
                Err(error) => verdict = error,
            }
        }
        (source, Err(verdict))
    }

    /// What the process itself knows to be valid.
    fn kept(&self, hash: &[u8; 32]) -> Option<Arc<CachedKey>> {
        if !self.l1_on {
            return None;
        }
        let cached = self.l1.get(&name_of(hash), || self.clock())?;
        (self.still_good(&cached) && bool::from(cached.hash.ct_eq(hash))).then_some(cached)
    }

    async fn ask(self: &Arc<Self>, hash: &[u8; 32]) -> (Source, Result<KeyLookup, IdentityError>) {
        let name = name_of(hash);
        // Without news from either channel no cache is believed.
        if !(self.feed.is_fresh() || self.l1.is_fenced(self.clock())) || !self.tier.allows() {
            return (Source::Primary, Box::pin(self.shared(hash, None)).await);
        }
        let key = self.tier.redis_key(&name);
        let snapshot = self.l1.snapshot(&name, self.clock());
        let found = match self.tier.get(&key).await {
            Ok(value) => match self.open(&key, hash, value.as_deref()) {
                Found::Valid(cached, prefix) => {
                    self.keep(snapshot, &cached);
                    self.refresh_ahead(&cached, prefix);
                    return (Source::Redis, Ok(KeyLookup::Valid(cached)));
                }
                Found::Unknown => return (Source::Redis, Ok(KeyLookup::unknown())),
                Found::Tombstone(..) => return (Source::Redis, Ok(KeyLookup::refused())),
                found => Some(found),
            },
            Err(error) => {
                tracing::debug!(%error, "redis did not answer; asking the primary");
                None
            }
        };
        (Source::Primary, Box::pin(self.shared(hash, found)).await)
    }

    /// Together with all who ask about the same key. `found`: what Redis had; `None`: Redis is not to be asked.
    async fn shared(&self, hash: &[u8; 32], found: Option<Found<Arc<CachedKey>>>) -> Result<KeyLookup, IdentityError> {
        let name = name_of(hash);
        loop {
            match self.flights.join(name) {
                Seat::Follower(follower) => {
                    metrics::counter!("identity_flight_joins_total").increment(1);
                    match completed(follower).await {
                        Some(Ok(fact)) => return Ok(fact),
                        Some(Err(reason)) => return Err(IdentityError::Db(DbError::Unavailable(reason))),
                        None => {}
                    }
                }
                Seat::Leader(mut flight) => {
                    // Before anything is read: what was read earlier must not be shared with who joins later.
                    flight.seal().await;
                    let result = self.proceed(hash, found).await;
                    let shared = result.as_ref().map(Clone::clone).map_err(ToString::to_string);
                    flight.complete(shared);
                    return result;
                }
            }
        }
    }

    /// Drives the protocol from what Redis had.
    async fn proceed(&self, hash: &[u8; 32], found: Option<Found<Arc<CachedKey>>>) -> Result<KeyLookup, IdentityError> {
        let key = self.tier.redis_key(&name_of(hash));
        let snapshot = self.l1.snapshot(&name_of(hash), self.clock());
        let lease = entry::lease(*Uuid::new_v4().as_bytes());
        let (mut verification, _) = Verification::<KeyLookup>::new(lease.clone());
        let mut event = found.map_or(Event::RedisFailed, |found| Event::Found(fact_found(found)));
        loop {
            event = match verification.next(event) {
                Action::Get => self.found(&key, hash, self.tier.get(&key).await),
                Action::Lease(lease) => self.found(&key, hash, self.tier.get_or_lease(&key, &lease).await),
                Action::TakeOver { expected, lease } => {
                    swapped(self.tier.swap(&key, &expected, &lease.0, entry::LEASE_MS).await)
                }
                Action::Wait(pause) => {
                    metrics::histogram!("identity_lease_wait_seconds").record(pause);
                    tokio::time::sleep(pause).await;
                    Event::Waited
                }
                Action::Read { fills } => match self.read(hash, if fills { QUEUE_TO_FILL } else { QUEUE }).await {
                    Ok(fact) => Event::Read(fact),
                    Err(error) => {
                        if fills {
                            self.give_back(&key, &lease).await;
                        }
                        return Err(error);
                    }
                },
                Action::Fill { lease, fact } => self.fill(&key, &lease, &fact).await,
                Action::Done(Answer::Cached(fact) | Answer::Primary { fact, kept: true }) => {
                    if let KeyLookup::Valid(cached) = &fact {
                        self.keep(snapshot, cached);
                    }
                    return Ok(fact);
                }
                Action::Done(Answer::Primary { fact, kept: false }) => return Ok(fact),
            };
        }
    }

    /// Asks the primary, a few at a time; `Busy` after `queue`.
    pub(super) async fn read(&self, hash: &[u8; 32], queue: Duration) -> Result<KeyLookup, IdentityError> {
        let turn = tokio::time::timeout(queue, self.primary_reads.acquire()).await;
        let _turn = turn.map_err(|_| IdentityError::Busy)?.map_err(|_| IdentityError::Busy)?;
        Ok(store::fact(&self.db, hash).await?)
    }

    pub(super) async fn fill(&self, key: &str, expected: &CasToken, fact: &KeyLookup) -> Event<KeyLookup> {
        let Some(now) = self.feed.now() else { return Event::Swapped(false) };
        if matches!(fact, KeyLookup::Unknown { .. }) && !self.may_remember_unknown() {
            self.give_back(key, expected).await;
            return Event::Swapped(false);
        }
        let (value, ms) = self.signer.sign(key, fact, *Uuid::new_v4().as_bytes(), now, random_unit());
        let event = swapped(self.tier.swap(key, expected, &value, ms).await);
        let outcome = match &event {
            Event::Swapped(true) => "ok",
            Event::Swapped(false) => "cas_refused",
            _ => "error",
        };
        metrics::counter!("identity_cache_fill_total", "outcome" => outcome).increment(1);
        event
    }

    /// Ends a lease that nothing is read under any more: others need not wait for it, and it takes no room.
    async fn give_back(&self, key: &str, lease: &CasToken) {
        if let Err(error) = self.tier.swap(key, lease, &[], 0).await {
            tracing::debug!(%error, "a lease was not given back; it ends by itself");
        }
    }

    /// Keys that are ours but unknown are bounded: a flood of them fills nothing.
    fn may_remember_unknown(&self) -> bool {
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        if unknown.0.elapsed() >= Duration::from_secs(1) {
            *unknown = (Instant::now(), 0);
        }
        unknown.1 += 1;
        unknown.1 <= UNKNOWN_PER_SECOND
    }

    fn found(
        &self,
        key: &str,
        hash: &[u8; 32],
        value: Result<Option<fred::bytes::Bytes>, crate::core::identity::cache::redis_tier::TierError>,
    ) -> Event<KeyLookup> {
        match value {
            Ok(value) => Event::Found(fact_found(self.open(key, hash, value.as_deref()))),
            Err(error) => {
                tracing::debug!(%error, "redis did not answer; asking the primary");
                Event::RedisFailed
            }
        }
    }

    /// What a value of Redis is worth now.
    fn open(&self, key: &str, hash: &[u8; 32], value: Option<&[u8]>) -> Found<Arc<CachedKey>> {
        match self.signer.open(key, hash, value) {
            Found::Valid(cached, prefix) if !self.still_good(&cached) => Found::Untrusted(prefix),
            // Of a suspension, say, that was told after the key was let in again.
            Found::Tombstone(ver, prefix) if ver < self.feed.version(&name_of(hash)) => Found::Untrusted(prefix),
            found => found,
        }
    }

    /// Not changed since, not older than any value may be, not expired: by the feed and Postgres' time.
    fn still_good(&self, cached: &CachedKey) -> bool {
        let Some(now) = self.feed.now() else { return false };
        #[allow(clippy::cast_precision_loss, reason = "minutes")]
        let too_old = now - cached.filled_at > VALID_MS as f64 / 1000.0;
        !too_old && !cached.expired(now) && cached.ver >= self.feed.version(&cached.name())
    }

    fn keep(&self, snapshot: Option<Snapshot>, cached: &Arc<CachedKey>) {
        if let (true, Some(snapshot)) = (self.l1_on, snapshot) {
            self.l1.insert(snapshot, cached.clone(), self.clock());
        }
    }
}

fn fact_found(found: Found<Arc<CachedKey>>) -> Found<KeyLookup> {
    match found {
        Found::Valid(cached, prefix) => Found::Valid(KeyLookup::Valid(cached), prefix),
        Found::Nothing => Found::Nothing,
        Found::Lease => Found::Lease,
        Found::Unknown => Found::Unknown,
        Found::Tombstone(ver, prefix) => Found::Tombstone(ver, prefix),
        Found::Untrusted(prefix) => Found::Untrusted(prefix),
    }
}

fn swapped(result: Result<bool, crate::core::identity::cache::redis_tier::TierError>) -> Event<KeyLookup> {
    result.map_or(Event::RedisFailed, Event::Swapped)
}

pub(super) fn random_unit() -> f64 {
    f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX)
}
