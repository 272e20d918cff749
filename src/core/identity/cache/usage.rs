//! When keys were last used: counted in memory and written every 30 s in one statement, never by a request itself.

use std::{collections::HashMap, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use time::OffsetDateTime;

use super::{key::KeyUses, store};
use crate::core::{db::DualDb, id::KeyId};

const FLUSH_INTERVAL: Duration = Duration::from_secs(30);
const FLUSH_BATCH_MAX: usize = 1000;
const SHARDS: usize = 64;

/// The uses of all keys since the last flush.
pub struct Usage(Vec<Mutex<HashMap<KeyId, KeyUses>>>);

impl Usage {
    /// Makes an empty set.
    pub fn new() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }

    /// Counts one use now.
    pub fn count(&self, key: KeyId) {
        self.add(KeyUses { key, last_at: OffsetDateTime::now_utc(), count: 1 });
    }

    fn add(&self, uses: KeyUses) {
        let mut shard = self.shard(usize::from(uses.key.uuid().as_bytes()[15]));
        let entry = shard.entry(uses.key).or_insert(KeyUses { count: 0, ..uses });
        entry.last_at = entry.last_at.max(uses.last_at);
        entry.count += uses.count;
    }

    /// Writes all uses. Those that cannot be written are kept for the next flush.
    pub async fn flush(&self, db: &DualDb) {
        let mut all: Vec<KeyUses> =
            (0..SHARDS).flat_map(|n| std::mem::take(&mut *self.shard(n))).map(|(_, uses)| uses).collect();
        // Every process writes in the same order, so that two flushes cannot deadlock.
        all.sort_unstable_by_key(|uses| uses.key);
        for batch in all.chunks(FLUSH_BATCH_MAX) {
            if let Err(error) = store::record_usage(db, batch).await {
                tracing::warn!(%error, "could not record the last use of keys; trying again");
                batch.iter().for_each(|uses| self.add(*uses));
            }
        }
    }

    /// Flushes every 30 s until the task is cancelled.
    pub async fn run(&self, db: &DualDb) {
        let mut tick = tokio::time::interval(FLUSH_INTERVAL);
        loop {
            tick.tick().await;
            self.flush(db).await;
        }
    }

    fn shard(&self, n: usize) -> MutexGuard<'_, HashMap<KeyId, KeyUses>> {
        self.0[n % SHARDS].lock()
    }
}
