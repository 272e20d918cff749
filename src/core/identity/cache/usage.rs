//! When keys were last used: counted here, written every 30 s in one statement, never on a request's way.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use time::OffsetDateTime;
use uuid::Uuid;

use super::store;
use crate::core::{db::DualDb, id::KeyId};

const PERIOD: Duration = Duration::from_secs(30);
const SHARDS: usize = 64;

/// Uses since the last write.
pub struct Usage(Vec<Mutex<HashMap<Uuid, (OffsetDateTime, i64)>>>);

impl Usage {
    pub fn new() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }

    pub fn count(&self, key: KeyId) {
        let uuid = key.uuid();
        let mut shard = self.shard(usize::from(uuid.as_bytes()[15]));
        let entry = shard.entry(uuid).or_insert((OffsetDateTime::UNIX_EPOCH, 0));
        *entry = (OffsetDateTime::now_utc(), entry.1 + 1);
    }

    /// Writes what was counted; what cannot be written is counted again.
    pub async fn flush(&self, db: &DualDb) {
        let mut uses: Vec<(Uuid, OffsetDateTime, i64)> =
            (0..SHARDS).flat_map(|n| std::mem::take(&mut *self.shard(n))).map(|(key, (at, n))| (key, at, n)).collect();
        // In one order in all processes: two writes that meet do not deadlock.
        uses.sort_unstable_by_key(|(key, ..)| *key);
        for batch in uses.chunks(1000) {
            if let Err(error) = store::record_usage(db, batch).await {
                tracing::warn!(%error, "could not write when keys were used; trying again");
                for (key, at, n) in batch {
                    let mut shard = self.shard(usize::from(key.as_bytes()[15]));
                    let entry = shard.entry(*key).or_insert((*at, 0));
                    *entry = (entry.0.max(*at), entry.1 + n);
                }
            }
        }
    }

    /// Writes for ever.
    pub async fn run(&self, db: &DualDb) {
        let mut tick = tokio::time::interval(PERIOD);
        loop {
            tick.tick().await;
            self.flush(db).await;
        }
    }

    fn shard(&self, n: usize) -> MutexGuard<'_, HashMap<Uuid, (OffsetDateTime, i64)>> {
        self.0[n % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
