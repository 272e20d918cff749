//! The version feed: every second the process reads from the primary which keys changed within the last six minutes.
//!
//! No cached value is used for longer than five minutes, so the feed has the version of every key that was changed
//! since a cached value was read. A value with a lower version is not used: a lost tombstone, a Redis that failed over
//! or restarted with old data, and a value that an attacker put back are detected within a second. The feed also
//! carries Postgres' time.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::RwLock;

use super::{key::ShortHash, store};
use crate::core::db::DualDb;

const READ_INTERVAL: Duration = Duration::from_secs(1);
/// When neither the feed is younger than this nor the invalidation log is being read, no cache is used.
pub const FEED_AGE_MAX: Duration = Duration::from_secs(10);

/// The last successful read.
#[derive(Default)]
pub struct VersionFeed {
    state: RwLock<Option<Arc<State>>>,
}

struct State {
    versions: HashMap<ShortHash, i64>,
    /// Postgres' clock when it ran the statement, in seconds since 1970.
    postgres_now: f64,
    sent_at: Instant,
}

impl VersionFeed {
    /// Returns the lowest version of the key that may be used; 0 when the key did not change recently.
    pub fn min_version(&self, name: &ShortHash) -> i64 {
        self.state().and_then(|state| state.versions.get(name).copied()).unwrap_or_default()
    }

    /// Returns Postgres' time in seconds since 1970, carried on by the process's monotonic clock; `None` before the
    /// first successful read.
    pub fn postgres_now(&self) -> Option<f64> {
        self.state().map(|state| state.postgres_now + state.sent_at.elapsed().as_secs_f64())
    }

    fn age(&self) -> Option<Duration> {
        self.state().map(|state| state.sent_at.elapsed())
    }

    /// Returns whether the last successful read is younger than `FEED_AGE_MAX`.
    pub fn is_fresh(&self) -> bool {
        self.age().is_some_and(|age| age < FEED_AGE_MAX)
    }

    /// Reads the feed once. A failure leaves the last result in place.
    pub async fn refresh(&self, db: &DualDb) {
        let sent_at = Instant::now();
        match store::recently_changed(db).await {
            Ok(read) => {
                let state = State { versions: read.versions, postgres_now: read.postgres_now, sent_at };
                *self.state.write() = Some(Arc::new(state));
            }
            Err(error) => tracing::warn!(%error, "cannot read recently changed keys from the primary; trying again"),
        }
    }

    /// Sets the gauge of the feed's age, which grows while the loop does not run.
    pub fn report(&self) {
        let age = self.age().map_or(f64::INFINITY, |age| age.as_secs_f64());
        metrics::gauge!("identity_feed_age_seconds").set(age);
    }

    /// Reads the feed every second until the task is cancelled.
    pub async fn run(&self, db: &DualDb) {
        let mut tick = tokio::time::interval(READ_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.refresh(db).await;
        }
    }

    fn state(&self) -> Option<Arc<State>> {
        self.state.read().clone()
    }
}
