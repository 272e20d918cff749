//! Delivering committed changes of keys to the caches: Postgres first, then Redis, then the answer.
//!
//! After `Propagation::Complete` no process accepts the key as it was before the change. With keys kept in processes
//! that takes until every process has applied the invalidation, or its fence has expired: at most 1.01 s. When Redis
//! does not take the change within 3 s the caller gets `Pending`; the change stays in the outbox, which every process
//! works off, and the version feed makes it take effect meanwhile. Delivering a change twice does the same as once.

use std::{sync::Arc, time::Duration};

use futures_util::future;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    entry::EntrySigner,
    key::{KeyLookup, short_hash},
    l1::{FENCE_MS, L1},
    outbox::OutboxGauges,
    redis_tier::{LogId, RedisTier, TierError},
    store,
};
use crate::core::{db::DualDb, identity::invalidation::Invalidation};

/// How long a caller tries Redis before it leaves the change to the outbox.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(3);
const DELIVERY_ATTEMPT_TIMEOUT: Duration = Duration::from_millis(300);
const DELIVERY_RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// Longer than any fence that was extended before, on clocks that are read in milliseconds and differ a little in rate.
/// A process whose last poll is older than this does not use what it keeps.
pub(super) const FENCE_EXPIRY_MAX: Duration = Duration::from_millis(FENCE_MS + 10);
const LAGGING_POLL_INTERVAL: Duration = Duration::from_millis(5);
const OUTBOX_INTERVAL: Duration = Duration::from_millis(500);
/// Within this time every process has read the version feed: its interval and the duration of a query.
const FEED_DELAY_MAX: Duration = Duration::from_secs(2);
const CONCURRENT_DELIVERIES_MAX: usize = 100;

/// Whether a change is in force everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// No process accepts the key as it was.
    Complete,
    /// Redis did not take the change.
    Pending {
        /// When every process has the change from the version feed.
        effective_by: OffsetDateTime,
    },
}

/// Delivers changes to Redis and to the processes. Cheap to clone.
#[derive(Clone)]
pub struct Propagator(Arc<Inner>);

struct Inner {
    db: DualDb,
    tier: RedisTier,
    signer: Arc<EntrySigner>,
    l1: Arc<L1>,
    outbox: OutboxGauges,
}

impl Propagator {
    pub(super) fn new(db: DualDb, tier: RedisTier, signer: Arc<EntrySigner>, l1: Arc<L1>) -> Self {
        Self(Arc::new(Inner { db, tier, signer, l1, outbox: OutboxGauges::new() }))
    }

    /// Delivers committed changes. `wait`: whether to return only when every process has applied them.
    pub async fn propagate(&self, changes: &[Invalidation], wait: bool) -> Propagation {
        let started = Instant::now();
        let delivered = self.deliver_all(changes, started + DELIVERY_TIMEOUT).await;
        for change in changes {
            self.0.l1.invalidate(&short_hash(&change.hash));
        }
        record("redis", started);
        let newest = match delivered {
            Ok(newest) => newest,
            Err(error) => {
                metrics::counter!("identity_revoke_pending_total").increment(1);
                let changes = changes.len();
                tracing::warn!(%error, changes, "redis did not take changes of keys, leaving them to the outbox");
                return Propagation::Pending { effective_by: OffsetDateTime::now_utc() + FEED_DELAY_MAX };
            }
        };
        if let (true, Some(entry)) = (wait, newest) {
            self.wait_for_processes(entry).await;
        }
        record("processes", started);
        let outbox: Vec<i64> = changes.iter().filter_map(|change| change.outbox).collect();
        if let Err(error) = store::mark_delivered(&self.0.db, &outbox).await {
            tracing::debug!(%error, "cannot mark a change as delivered; the outbox delivers it again");
        }
        Propagation::Complete
    }

    /// Returns the newest of the changes' log entries.
    async fn deliver_all(&self, changes: &[Invalidation], deadline: Instant) -> Result<Option<LogId>, TierError> {
        let mut newest = None;
        for batch in changes.chunks(CONCURRENT_DELIVERIES_MAX) {
            for entry in future::join_all(batch.iter().map(|change| self.deliver(change, deadline))).await {
                newest = newest.max(Some(entry?));
            }
        }
        Ok(newest)
    }

    async fn deliver(&self, change: &Invalidation, deadline: Instant) -> Result<LogId, TierError> {
        let name = short_hash(&change.hash);
        let key = self.0.tier.redis_key(&name);
        let tombstone = change.refused.then(|| {
            let lookup = KeyLookup::Refused { ver: change.ver };
            self.0.signer.sign(&key, &lookup, *Uuid::new_v4().as_bytes(), 0.0, 0.0).value
        });
        loop {
            let attempt = self.0.tier.invalidate(&name, tombstone.as_deref(), change.ver);
            // The client's own time-out does not cover a reconnection.
            let attempt = tokio::time::timeout(DELIVERY_ATTEMPT_TIMEOUT, attempt).await;
            match attempt.unwrap_or_else(|_| Err(TierError("no answer in time".into()))) {
                Ok(entry) => return Ok(entry),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => tokio::time::sleep(DELIVERY_RETRY_INTERVAL).await,
            }
        }
    }

    async fn wait_for_processes(&self, entry: LogId) {
        let delivered = Instant::now();
        loop {
            let lagging = self.0.tier.count_lagging(entry, FENCE_EXPIRY_MAX).await.ok().flatten();
            if is_in_force(delivered.elapsed(), lagging) {
                return;
            }
            match lagging {
                Some(_) => tokio::time::sleep(LAGGING_POLL_INTERVAL).await,
                None => tokio::time::sleep_until(delivered + FENCE_EXPIRY_MAX).await,
            }
        }
    }

    /// Sets the gauges of the outbox.
    pub(super) fn report(&self, now: std::time::Instant) {
        self.0.outbox.report(now);
    }

    /// Works off the outbox until the task is cancelled.
    pub async fn run(&self) {
        let mut tick = tokio::time::interval(OUTBOX_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let outbox = match store::undelivered(&self.0.db).await {
                Ok(outbox) => outbox,
                Err(error) => {
                    tracing::debug!(%error, "cannot read the outbox; trying again");
                    continue;
                }
            };
            self.0.outbox.record(outbox.invalidations.len(), outbox.oldest_s);
            if !outbox.invalidations.is_empty() {
                self.propagate(&outbox.invalidations, false).await;
            }
        }
    }
}

/// Returns whether no process uses what was true before the change, `waited` after Redis took it. `lagging`: how many
/// processes have not applied it; `None`: unknown, also when Redis has lost its list of processes.
pub(super) fn is_in_force(waited: Duration, lagging: Option<i64>) -> bool {
    waited >= FENCE_EXPIRY_MAX || lagging == Some(0)
}

fn record(stage: &'static str, started: Instant) {
    metrics::histogram!("identity_revoke_seconds", "stage" => stage).record(started.elapsed());
}
