//! The second channel: each second the primary is asked which keys changed within the last six minutes.
//!
//! No cached value is older than five minutes, so whatever was revoked since it was made is in here: a lost tombstone,
//! a failed-over or restored Redis and a replanted value are all found out within a second. It also tells Postgres' time.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use super::{KeyHash, store};
use crate::core::db::DualDb;

const PERIOD: Duration = Duration::from_secs(1);
/// Without news from the log and with a feed older than this, no cache is believed.
pub const STALE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Feed {
    state: RwLock<Option<Arc<State>>>,
}

struct State {
    versions: HashMap<KeyHash, i64>,
    /// Postgres' clock, seconds since 1970, when the question was answered at the earliest.
    now: f64,
    asked_at: Instant,
}

impl Feed {
    /// The least version that may be believed; 0: any.
    pub fn version(&self, name: &KeyHash) -> i64 {
        self.state().and_then(|state| state.versions.get(name).copied()).unwrap_or_default()
    }

    /// Postgres' time now, by our monotonic clock since it was last told; `None`: never told.
    pub fn now(&self) -> Option<f64> {
        self.state().map(|state| state.now + state.asked_at.elapsed().as_secs_f64())
    }

    pub fn age(&self) -> Option<Duration> {
        self.state().map(|state| state.asked_at.elapsed())
    }

    pub fn is_fresh(&self) -> bool {
        self.age().is_some_and(|age| age < STALE)
    }

    /// Asks once.
    pub async fn ask(&self, db: &DualDb) {
        let asked_at = Instant::now();
        match store::changed_lately(db).await {
            Ok((now, versions)) => {
                let state = State { versions, now, asked_at };
                *self.state.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(state));
            }
            Err(error) => tracing::warn!(%error, "the primary does not tell which keys changed"),
        }
    }

    /// Sets the gauge of its age, which grows while the loop does not run.
    pub fn report(&self) {
        let age = self.age().map_or(f64::INFINITY, |age| age.as_secs_f64());
        metrics::gauge!("identity_feed_age_seconds").set(age);
    }

    /// Asks for ever.
    pub async fn run(&self, db: &DualDb) {
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.ask(db).await;
        }
    }

    fn state(&self) -> Option<Arc<State>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
