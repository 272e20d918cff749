//! Telling the caches that a key changed: Postgres first, then Redis, then the answer.
//!
//! When `Complete` is answered, no process accepts the key as it was. With keys kept in processes that takes until each
//! of them has heard, or can no longer believe what it keeps: at most a second. What Redis cannot take stays in the
//! outbox, which every process works off.

use std::{sync::Arc, time::Duration};

use futures_util::future;
use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    CachedIdentity, KeyLookup,
    l1::FENCE_MS,
    name_of,
    redis_tier::{LogId, TierError},
    service::Inner,
    store::{self, Change},
};

/// How long Redis is tried before the outbox takes over.
const TRY: Duration = Duration::from_secs(3);
/// Longer than any fence that was granted before, on clocks that are read in milliseconds and differ a little in rate.
/// A process that asked for news longer ago than this believes nothing it keeps.
pub(super) const SETTLED: Duration = Duration::from_millis(FENCE_MS + 10);
const OUTBOX_PERIOD: Duration = Duration::from_millis(500);
/// Changes on their way to Redis at a time.
const CONCURRENT: usize = 100;

/// Whether everybody has heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Nobody accepts the key as it was.
    Complete,
    /// Redis could not be told. The feed tells every process by then.
    Pending { effective_by: OffsetDateTime },
}

/// Tells of changes.
#[derive(Clone)]
pub struct Revoker(Arc<Inner>);

impl CachedIdentity {
    pub fn revoker(&self) -> Revoker {
        Revoker(self.inner().clone())
    }
}

impl Revoker {
    /// Tells everybody of changes that are committed. `wait`: answer only when every process has heard.
    pub async fn propagate(&self, changes: &[Change], wait: bool) -> Propagation {
        let started = Instant::now();
        let told = self.tell_all(changes, started + TRY).await;
        for change in changes {
            self.0.l1.invalidate(&name_of(&change.hash));
        }
        record("redis", started);
        let Ok(newest) = told else {
            metrics::counter!("identity_revoke_pending_total").increment(1);
            let feed = Duration::from_secs(2);
            return Propagation::Pending { effective_by: OffsetDateTime::now_utc() + feed };
        };
        if let (true, Some(entry)) = (wait, newest) {
            self.wait_for_processes(entry).await;
        }
        record("processes", started);
        let outbox: Vec<i64> = changes.iter().map(|change| change.outbox).collect();
        if let Err(error) = store::propagated(&self.0.db, &outbox).await {
            // It is told once more: harmless.
            tracing::debug!(%error, "could not note that a change was told");
        }
        Propagation::Complete
    }

    async fn tell_all(&self, changes: &[Change], deadline: Instant) -> Result<Option<LogId>, TierError> {
        let mut newest = None;
        for batch in changes.chunks(CONCURRENT) {
            for told in future::join_all(batch.iter().map(|change| self.tell(change, deadline))).await {
                newest = newest.max(Some(told?));
            }
        }
        Ok(newest)
    }

    /// The same twice is the same.
    async fn tell(&self, change: &Change, deadline: Instant) -> Result<LogId, TierError> {
        let name = name_of(&change.hash);
        let key = self.0.tier.redis_key(&name);
        let tombstone = change.refused.then(|| {
            let fact = KeyLookup::Refused { ver: change.ver };
            self.0.signer.sign(&key, &fact, *Uuid::new_v4().as_bytes(), 0.0, 0.0).0
        });
        loop {
            let told = self.0.tier.revoke(&name, tombstone.as_deref(), change.ver);
            // The client's own time-out does not cover a reconnection.
            let told = tokio::time::timeout(Duration::from_millis(300), told).await;
            match told.unwrap_or_else(|_| Err(TierError("no answer in time".into()))) {
                Ok(told) => return Ok(told),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn wait_for_processes(&self, entry: LogId) {
        let told = Instant::now();
        loop {
            let behind = self.0.tier.behind(entry, SETTLED).await.ok().flatten();
            if all_have_heard(told.elapsed(), behind) {
                return;
            }
            match behind {
                Some(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                None => tokio::time::sleep_until(told + SETTLED).await,
            }
        }
    }

    /// Works off the outbox, for ever.
    pub async fn run(&self) {
        let mut tick = tokio::time::interval(OUTBOX_PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let (changes, oldest) = match store::unpropagated(&self.0.db).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::debug!(%error, "the outbox cannot be read");
                    continue;
                }
            };
            self.0.outbox.record(changes.len(), oldest);
            if !changes.is_empty() {
                self.propagate(&changes, false).await;
            }
        }
    }
}

/// The outbox as it was read last, and when.
pub(super) struct OutboxCounts(Mutex<(usize, f64, std::time::Instant)>);

impl OutboxCounts {
    pub(super) fn new() -> Self {
        Self(Mutex::new((0, 0.0, std::time::Instant::now())))
    }

    /// Records the number of changes in the outbox, and the age of the oldest in seconds.
    fn record(&self, pending: usize, oldest: f64) {
        *self.0.lock() = (pending, oldest, std::time::Instant::now());
    }

    /// Sets the gauges. The age of the oldest change goes on since the outbox was read, and of an empty outbox it is the
    /// age of the reading: a change may have been committed right after it.
    pub(super) fn report(&self, now: std::time::Instant) {
        let (pending, oldest, read_at) = *self.0.lock();
        #[allow(clippy::cast_precision_loss, reason = "at most a batch")]
        metrics::gauge!("identity_revoke_pending").set(pending as f64);
        let oldest = oldest + now.saturating_duration_since(read_at).as_secs_f64();
        metrics::gauge!("identity_outbox_oldest_seconds").set(oldest);
    }
}

/// Whether nobody believes what was true before, `waited` after Redis was told. `behind`: how many processes have not
/// heard; `None`: unknown, also when Redis forgot who listens.
pub(super) fn all_have_heard(waited: Duration, behind: Option<i64>) -> bool {
    waited >= SETTLED || behind == Some(0)
}

fn record(stage: &'static str, started: Instant) {
    metrics::histogram!("identity_revoke_seconds", "stage" => stage).record(started.elapsed());
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn age_of_the_outbox_grows_when_it_is_not_read() {
        let (recorder, outbox) = (PrometheusBuilder::new().build_recorder(), OutboxCounts::new());
        outbox.record(3, 2.0);

        let later = std::time::Instant::now() + Duration::from_secs(600);
        metrics::with_local_recorder(&recorder, || outbox.report(later));

        let text = recorder.handle().render();
        assert!(text.contains("identity_outbox_oldest_seconds 602"), "{text}");
    }
}
