//! One lookup of a key beyond the process: Redis, then the primary, with the protocol of `verify`.
//!
//! Callers that look up the same key share one run of the protocol (`single_flight`). Reads of the primary are limited
//! to a part of its pool; a lookup that cannot get its turn is `Busy`, so a flood of lookups cannot take every
//! connection.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::{
    entry::{self, CasToken, Entry, EntrySigner, VALID_TTL_MS},
    key::{CachedKey, KeyLookup, ShortHash, short_hash},
    l1::{L1, Snapshot},
    redis_tier::{RedisTier, TierError},
    single_flight::{Joined, SingleFlight},
    store,
    verify::{Action, Answer, Event, NegativeLookup, Verification},
    versions::VersionFeed,
};
use crate::core::{
    db::{DbError, DualDb},
    identity::{error::IdentityError, meter::Source},
    random::random_unit,
};

/// How long a lookup waits for its turn at the primary.
pub(super) const PRIMARY_QUEUE_TIMEOUT: Duration = Duration::from_millis(100);
/// How long a lookup that fills the cache waits for its turn. It waits longer, since later lookups of the key need no
/// turn: a thousand clients that reconnect at the same time fill the cache once.
const FILL_QUEUE_TIMEOUT: Duration = Duration::from_secs(1);
/// Unknown keys that a process writes to Redis per second.
const UNKNOWN_PER_SECOND_MAX: u32 = 100;

pub(super) struct Lookups {
    pub db: DualDb,
    pub signer: Arc<EntrySigner>,
    pub tier: RedisTier,
    pub l1: Arc<L1>,
    /// Whether keys are kept in the process.
    pub l1_on: bool,
    pub feed: VersionFeed,
    pub refreshing: Mutex<HashSet<ShortHash>>,
    flights: SingleFlight<Result<KeyLookup, String>>,
    primary_reads: Semaphore,
    unknown: Mutex<UnknownKeys>,
    started: Instant,
}

/// The unknown keys that were written to Redis in the present second.
struct UnknownKeys {
    since: Instant,
    count: u32,
}

impl NegativeLookup for KeyLookup {
    fn unknown() -> Self {
        Self::Unknown { valid_in_s: None }
    }

    fn refused() -> Self {
        Self::Refused { ver: 0 }
    }
}

impl Lookups {
    pub fn new(
        db: DualDb,
        signer: Arc<EntrySigner>,
        tier: RedisTier,
        l1: Arc<L1>,
        l1_on: bool,
        primary_reads: usize,
    ) -> Self {
        Self {
            db,
            signer,
            tier,
            l1,
            l1_on,
            feed: VersionFeed::default(),
            refreshing: Mutex::default(),
            flights: SingleFlight::new(),
            primary_reads: Semaphore::new(primary_reads.max(1)),
            unknown: Mutex::new(UnknownKeys { since: Instant::now(), count: 0 }),
            started: Instant::now(),
        }
    }

    /// Returns the milliseconds of a monotonic clock; never 0.
    pub fn clock(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// Looks up a key, and returns where the answer came from.
    pub async fn lookup(self: &Arc<Self>, hash: &[u8; 32]) -> (Source, Result<KeyLookup, IdentityError>) {
        let name = short_hash(hash);
        // While neither channel of invalidations works, no cache is used.
        if !(self.feed.is_fresh() || self.l1.is_fenced(self.clock())) || !self.tier.allows() {
            return (Source::Primary, Box::pin(self.shared(hash, None)).await);
        }
        let key = self.tier.redis_key(&name);
        let snapshot = self.l1.snapshot(&name, self.clock());
        let entry = match self.tier.get(&key).await {
            Ok(value) => match self.verify_entry(&key, hash, value.as_deref()) {
                Entry::Valid(cached, token) => {
                    self.keep_in_process(snapshot, &cached);
                    self.refresh_ahead(&cached, token);
                    return (Source::Redis, Ok(KeyLookup::Valid(cached)));
                }
                Entry::Unknown => return (Source::Redis, Ok(KeyLookup::unknown())),
                Entry::Tombstone(..) => return (Source::Redis, Ok(KeyLookup::refused())),
                entry => Some(entry),
            },
            Err(error) => {
                log_unanswered(&error);
                None
            }
        };
        (Source::Primary, Box::pin(self.shared(hash, entry)).await)
    }

    /// Runs the protocol once for all callers that look up the same key. `entry`: what Redis had; `None`: Redis is not
    /// used.
    async fn shared(&self, hash: &[u8; 32], entry: Option<Entry<Arc<CachedKey>>>) -> Result<KeyLookup, IdentityError> {
        let name = short_hash(hash);
        loop {
            match self.flights.join(name) {
                Joined::Follower(follower) => {
                    metrics::counter!("identity_flight_joins_total").increment(1);
                    match follower.answer().await {
                        Some(Ok(lookup)) => return Ok(lookup),
                        Some(Err(reason)) => return Err(IdentityError::Db(DbError::Unavailable(reason))),
                        None => {}
                    }
                }
                Joined::Leader(mut leader) => {
                    // Before anything is read: what was read earlier must not reach a caller that joins later.
                    leader.seal().await;
                    let result = self.run_protocol(hash, entry).await;
                    leader.complete(result.as_ref().map(Clone::clone).map_err(ToString::to_string));
                    return result;
                }
            }
        }
    }

    async fn run_protocol(
        &self,
        hash: &[u8; 32],
        entry: Option<Entry<Arc<CachedKey>>>,
    ) -> Result<KeyLookup, IdentityError> {
        let key = self.tier.redis_key(&short_hash(hash));
        let snapshot = self.l1.snapshot(&short_hash(hash), self.clock());
        let lease = entry::lease(*Uuid::new_v4().as_bytes());
        let (mut verification, _) = Verification::<KeyLookup>::new(lease.clone());
        let mut event = entry.map_or(Event::RedisFailed, |entry| Event::Entry(as_lookup(entry)));
        loop {
            event = match verification.next(event) {
                Action::Get => self.entry_event(&key, hash, self.tier.get(&key).await),
                Action::AcquireLease(lease) => self.entry_event(&key, hash, self.tier.get_or_lease(&key, &lease).await),
                Action::TakeOver { expected, lease } => {
                    swap_event(self.tier.swap(&key, &expected, &lease.0, entry::LEASE_TTL_MS).await)
                }
                Action::Wait(pause) => {
                    metrics::histogram!("identity_lease_wait_seconds").record(pause);
                    tokio::time::sleep(pause).await;
                    Event::Waited
                }
                Action::ReadPrimary { fills } => {
                    let queue = if fills { FILL_QUEUE_TIMEOUT } else { PRIMARY_QUEUE_TIMEOUT };
                    match self.read_primary(hash, queue).await {
                        Ok(lookup) => Event::Read(lookup),
                        Err(error) => {
                            if fills {
                                self.release_lease(&key, &lease).await;
                            }
                            return Err(error);
                        }
                    }
                }
                Action::Fill { lease, lookup } => self.fill(&key, &lease, &lookup).await,
                Action::Done(Answer::Cached(lookup) | Answer::Primary { lookup, filled: true }) => {
                    if let KeyLookup::Valid(cached) = &lookup {
                        self.keep_in_process(snapshot, cached);
                    }
                    return Ok(lookup);
                }
                Action::Done(Answer::Primary { lookup, filled: false }) => return Ok(lookup),
            };
        }
    }

    /// Reads the primary, a few lookups at a time; `Busy` when the turn does not come within `queue`.
    pub async fn read_primary(&self, hash: &[u8; 32], queue: Duration) -> Result<KeyLookup, IdentityError> {
        let turn = tokio::time::timeout(queue, self.primary_reads.acquire()).await;
        let _turn = turn.map_err(|_| IdentityError::Busy)?.map_err(|_| IdentityError::Busy)?;
        Ok(store::lookup(&self.db, hash).await?)
    }

    /// Writes a lookup in the place of the value that has the token `expected`.
    pub async fn fill(&self, key: &str, expected: &CasToken, lookup: &KeyLookup) -> Event<KeyLookup> {
        let Some(now) = self.feed.postgres_now() else { return Event::Swapped(false) };
        if matches!(lookup, KeyLookup::Unknown { .. }) && !self.may_write_unknown() {
            self.release_lease(key, expected).await;
            return Event::Swapped(false);
        }
        let signed = self.signer.sign(key, lookup, *Uuid::new_v4().as_bytes(), now, random_unit());
        let event = swap_event(self.tier.swap(key, expected, &signed.value, signed.ttl_ms).await);
        let outcome = match &event {
            Event::Swapped(true) => "ok",
            Event::Swapped(false) => "cas_refused",
            _ => "error",
        };
        metrics::counter!("identity_cache_fill_total", "outcome" => outcome).increment(1);
        event
    }

    /// Removes a lease that nothing is read under any more, so that other processes do not wait for it.
    async fn release_lease(&self, key: &str, lease: &CasToken) {
        if let Err(error) = self.tier.swap(key, lease, &[], 0).await {
            tracing::debug!(%error, "cannot release a lease in redis; it expires within 3 s");
        }
    }

    /// Limits the unknown keys in Redis: only a holder of a tag secret can send one, but then as many as it likes.
    fn may_write_unknown(&self) -> bool {
        let mut unknown = self.unknown.lock();
        if unknown.since.elapsed() >= Duration::from_secs(1) {
            *unknown = UnknownKeys { since: Instant::now(), count: 0 };
        }
        unknown.count += 1;
        unknown.count <= UNKNOWN_PER_SECOND_MAX
    }

    fn entry_event(
        &self,
        key: &str,
        hash: &[u8; 32],
        value: Result<Option<fred::bytes::Bytes>, TierError>,
    ) -> Event<KeyLookup> {
        match value {
            Ok(value) => Event::Entry(as_lookup(self.verify_entry(key, hash, value.as_deref()))),
            Err(error) => {
                log_unanswered(&error);
                Event::RedisFailed
            }
        }
    }

    /// Verifies a value of Redis, and compares it with the version feed.
    fn verify_entry(&self, key: &str, hash: &[u8; 32], value: Option<&[u8]>) -> Entry<Arc<CachedKey>> {
        match self.signer.verify(key, hash, value) {
            Entry::Valid(cached, token) if !self.is_current(&cached) => Entry::Untrusted(token),
            // A tombstone that was delivered after a later change made the key valid again.
            Entry::Tombstone(ver, token) if ver < self.feed.min_version(&short_hash(hash)) => Entry::Untrusted(token),
            entry => entry,
        }
    }

    /// Returns whether a cached key may be used: not changed since it was read and not expired, by the version feed and
    /// Postgres' time, and not older than any value may be.
    pub fn is_current(&self, cached: &CachedKey) -> bool {
        let Some(now) = self.feed.postgres_now() else { return false };
        #[allow(clippy::cast_precision_loss, reason = "minutes")]
        let is_too_old = now - cached.filled_at > VALID_TTL_MS as f64 / 1000.0;
        !is_too_old && !cached.is_expired(now) && cached.ver >= self.feed.min_version(&cached.short_hash())
    }

    fn keep_in_process(&self, snapshot: Option<Snapshot>, cached: &Arc<CachedKey>) {
        if let (true, Some(snapshot)) = (self.l1_on, snapshot) {
            self.l1.insert(snapshot, cached.clone(), self.clock());
        }
    }
}

fn log_unanswered(error: &TierError) {
    tracing::debug!(%error, "redis did not answer, reading from the primary");
}

fn as_lookup(entry: Entry<Arc<CachedKey>>) -> Entry<KeyLookup> {
    match entry {
        Entry::Valid(cached, token) => Entry::Valid(KeyLookup::Valid(cached), token),
        Entry::Missing => Entry::Missing,
        Entry::Lease => Entry::Lease,
        Entry::Unknown => Entry::Unknown,
        Entry::Tombstone(ver, token) => Entry::Tombstone(ver, token),
        Entry::Untrusted(token) => Entry::Untrusted(token),
    }
}

fn swap_event(result: Result<bool, TierError>) -> Event<KeyLookup> {
    result.map_or(Event::RedisFailed, Event::Swapped)
}
