//! Keys kept in the process: a bounded map that is only believed while news of revocations arrives.
//!
//! Three guards. The *fence*: one second from the moment the last successful question for news was sent; past it nothing
//! here is used. The *generation* of a shard: grows with each invalidation in it, so that a value fetched before one
//! cannot be put in after it. The *epoch*: grows when news may have been missed, and makes everything here void.
//! Time is a parameter: milliseconds of a monotonic clock.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{CachedKey, KeyHash};

/// How long after a question was sent its answer is good for.
pub const FENCE_MS: u64 = 1_000;
const TTL_MS: u64 = 30_000;
const SHARDS: usize = 256;
const MAX_PER_SHARD: usize = 400;

pub struct L1 {
    shards: Vec<Mutex<Shard>>,
    epoch: AtomicU64,
    /// Milliseconds; 0: none.
    fence: AtomicU64,
}

#[derive(Default)]
struct Shard {
    generation: u64,
    kept: HashMap<KeyHash, Kept>,
}

#[derive(Clone)]
pub(super) struct Kept {
    cached: Arc<CachedKey>,
    epoch: u64,
    until: u64,
}

/// What must not have changed between asking and putting in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Snapshot {
    pub(super) generation: u64,
    pub(super) epoch: u64,
}

impl L1 {
    pub fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, epoch: AtomicU64::new(0), fence: AtomicU64::new(0) }
    }

    /// The key, if it is here and may be believed.
    pub fn get(&self, name: &KeyHash, now: impl Fn() -> u64) -> Option<Arc<CachedKey>> {
        // The fence before the entry: news that comes in between, and removes it, must not vouch for it. And after it: a
        // process that slept in between finds the fence fallen.
        if !self.is_fenced(now()) {
            return None;
        }
        let kept = self.look(name)?;
        let now = now();
        (now < kept.until && self.is_fenced(now)).then_some(kept.cached)
    }

    /// What is here of this epoch, believed or not.
    pub(super) fn look(&self, name: &KeyHash) -> Option<Kept> {
        let shard = self.shard(name);
        shard.kept.get(name).filter(|kept| kept.epoch == self.epoch.load(Ordering::SeqCst)).cloned()
    }

    /// To be taken before the value is asked for; `None`: nothing may be put in now.
    pub fn snapshot(&self, name: &KeyHash, now: u64) -> Option<Snapshot> {
        let shard = self.shard(name);
        let snapshot = Snapshot { generation: shard.generation, epoch: self.epoch.load(Ordering::SeqCst) };
        self.is_fenced(now).then_some(snapshot)
    }

    /// Puts a value in that was asked for after `snapshot`, unless news came in between.
    pub fn insert(&self, snapshot: Snapshot, cached: Arc<CachedKey>, now: u64) {
        let name = cached.name();
        let mut shard = self.shard(&name);
        if shard.generation != snapshot.generation || self.epoch.load(Ordering::SeqCst) != snapshot.epoch {
            return;
        }
        if shard.kept.len() >= MAX_PER_SHARD && !shard.kept.contains_key(&name) {
            let epoch = snapshot.epoch;
            shard.kept.retain(|_, kept| kept.epoch == epoch && now < kept.until);
            // Still full: any will do, and the map's order is as good as random.
            if shard.kept.len() >= MAX_PER_SHARD
                && let Some(victim) = shard.kept.keys().next().copied()
            {
                shard.kept.remove(&victim);
            }
        }
        shard.kept.insert(name, Kept { cached, epoch: snapshot.epoch, until: now + TTL_MS });
    }

    /// InvalidationBatch of this key.
    pub fn invalidate(&self, name: &KeyHash) {
        let mut shard = self.shard(name);
        shard.generation += 1;
        shard.kept.remove(name);
    }

    /// InvalidationBatch may have been missed: nothing here counts any more, and nothing is believed until news arrives again.
    pub fn flush(&self) {
        self.fence.store(0, Ordering::SeqCst);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        metrics::counter!("identity_l1_epoch_bumps_total").increment(1);
    }

    /// All news up to a question sent at `sent_at` is in.
    pub fn grant(&self, sent_at: u64) {
        self.fence.store(sent_at + FENCE_MS, Ordering::SeqCst);
    }

    /// Whether news is recent enough.
    pub fn is_fenced(&self, now: u64) -> bool {
        now < self.fence.load(Ordering::SeqCst)
    }

    /// Milliseconds since the question whose news was the last to be let in was sent; `None`: nothing is believed.
    pub fn fence_age(&self, now: u64) -> Option<u64> {
        let fence = self.fence.load(Ordering::SeqCst);
        (fence > 0).then(|| (now + FENCE_MS).saturating_sub(fence))
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).kept.len()).sum()
    }

    fn shard(&self, name: &KeyHash) -> MutexGuard<'_, Shard> {
        self.shards[usize::from(name[0]) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All that a map knows that holds one key at most: for the models, which go back and forth between states.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Frozen {
    pub fence: u64,
    pub epoch: u64,
    pub generation: u64,
    /// The epoch of the entry.
    pub kept: Option<u64>,
}

#[cfg(test)]
impl L1 {
    pub(super) fn freeze(&self, name: &KeyHash) -> Frozen {
        let shard = self.shard(name);
        Frozen {
            fence: self.fence.load(Ordering::SeqCst),
            epoch: self.epoch.load(Ordering::SeqCst),
            generation: shard.generation,
            kept: shard.kept.get(name).map(|kept| kept.epoch),
        }
    }

    pub(super) fn thaw(&self, frozen: Frozen, cached: &Arc<CachedKey>) {
        self.fence.store(frozen.fence, Ordering::SeqCst);
        self.epoch.store(frozen.epoch, Ordering::SeqCst);
        let mut shard = self.shard(&cached.name());
        shard.generation = frozen.generation;
        shard.kept.clear();
        if let Some(epoch) = frozen.kept {
            shard.kept.insert(cached.name(), Kept { cached: cached.clone(), epoch, until: u64::MAX });
        }
    }
}
