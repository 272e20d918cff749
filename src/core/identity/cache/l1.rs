//! L1: keys kept in the process, in a bounded map that is used only while invalidations arrive.
//!
//! Three guards protect it. The *fence* ends one second after the last successful poll of the invalidation log was
//! *sent*; past it no entry is used. The *generation* of a shard grows with each invalidation in it, so that a value
//! read before an invalidation cannot be inserted after it. The *epoch* grows when invalidations may have been missed,
//! and makes every entry void. `model/process.rs` shows what each guard prevents.
//!
//! The map is our own because the check of generation and epoch must happen under the shard's lock at insertion, which
//! the cache crates that we looked at (`moka`, `quick_cache`) do not offer. Time is a parameter: milliseconds of a
//! monotonic clock.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};

use super::key::{CachedKey, ShortHash};

/// How long after a poll was sent entries may be used, in milliseconds.
pub const FENCE_TTL_MS: u64 = 1_000;
const ENTRY_TTL_MS: u64 = 30_000;
const SHARDS: usize = 256;
const SHARD_ENTRIES_MAX: usize = 400;

/// The keys kept in a process.
pub struct L1 {
    shards: Vec<Mutex<Shard>>,
    epoch: AtomicU64,
    /// When the fence ends, in milliseconds; 0: there is no fence.
    fence: AtomicU64,
}

#[derive(Default)]
struct Shard {
    generation: u64,
    entries: HashMap<ShortHash, L1Entry>,
}

#[derive(Clone)]
pub(super) struct L1Entry {
    cached: Arc<CachedKey>,
    epoch: u64,
    expires_at: u64,
}

/// Generation and epoch from before a value was read. `insert` compares them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Snapshot {
    pub(super) generation: u64,
    pub(super) epoch: u64,
}

impl L1 {
    /// Makes an empty map without a fence.
    pub fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, epoch: AtomicU64::new(0), fence: AtomicU64::new(0) }
    }

    /// Returns the key's entry if it may be used now. `now` is read before and after the entry is.
    pub fn get(&self, name: &ShortHash, now: impl Fn() -> u64) -> Option<Arc<CachedKey>> {
        // The fence is checked before the entry is read: a poll that removes the entry and extends the fence in between
        // must not make the old entry usable. It is checked again after: a process that was suspended in between finds
        // the fence expired.
        if !self.is_fenced(now()) {
            return None;
        }
        let entry = self.get_unfenced(name)?;
        let now = now();
        (now < entry.expires_at && self.is_fenced(now)).then_some(entry.cached)
    }

    /// Returns the key's entry of the present epoch, whether or not it may be used.
    pub(super) fn get_unfenced(&self, name: &ShortHash) -> Option<L1Entry> {
        let shard = self.shard(name);
        shard.entries.get(name).filter(|entry| entry.epoch == self.epoch.load(Ordering::SeqCst)).cloned()
    }

    /// Returns the snapshot to take before a value is read; `None` when nothing may be inserted now.
    pub fn snapshot(&self, name: &ShortHash, now: u64) -> Option<Snapshot> {
        let shard = self.shard(name);
        let snapshot = Snapshot { generation: shard.generation, epoch: self.epoch.load(Ordering::SeqCst) };
        self.is_fenced(now).then_some(snapshot)
    }

    /// Inserts a value that was read after `snapshot` was taken, unless the shard was invalidated or flushed since.
    pub fn insert(&self, snapshot: Snapshot, cached: Arc<CachedKey>, now: u64) {
        let name = cached.short_hash();
        let mut shard = self.shard(&name);
        if shard.generation != snapshot.generation || self.epoch.load(Ordering::SeqCst) != snapshot.epoch {
            return;
        }
        if shard.entries.len() >= SHARD_ENTRIES_MAX && !shard.entries.contains_key(&name) {
            let epoch = snapshot.epoch;
            shard.entries.retain(|_, entry| entry.epoch == epoch && now < entry.expires_at);
            // Still full: evict any entry. The map's order is as good as random.
            if shard.entries.len() >= SHARD_ENTRIES_MAX
                && let Some(victim) = shard.entries.keys().next().copied()
            {
                shard.entries.remove(&victim);
            }
        }
        shard.entries.insert(name, L1Entry { cached, epoch: snapshot.epoch, expires_at: now + ENTRY_TTL_MS });
    }

    /// Removes the key's entry, and prevents the insertion of a value that was read before.
    pub fn invalidate(&self, name: &ShortHash) {
        let mut shard = self.shard(name);
        shard.generation += 1;
        shard.entries.remove(name);
    }

    /// Makes every entry void and removes the fence, because invalidations may have been missed.
    pub fn flush(&self) {
        self.fence.store(0, Ordering::SeqCst);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        metrics::counter!("identity_l1_epoch_bumps_total").increment(1);
    }

    /// Extends the fence, after all invalidations up to a poll sent at `sent_at` have been applied.
    pub fn extend_fence(&self, sent_at: u64) {
        self.fence.store(sent_at + FENCE_TTL_MS, Ordering::SeqCst);
    }

    /// Returns whether entries may be used at `now`.
    pub fn is_fenced(&self, now: u64) -> bool {
        now < self.fence.load(Ordering::SeqCst)
    }

    /// Returns the milliseconds since the last applied poll was sent; `None` when there is no fence.
    pub fn fence_age(&self, now: u64) -> Option<u64> {
        let fence = self.fence.load(Ordering::SeqCst);
        (fence > 0).then(|| (now + FENCE_TTL_MS).saturating_sub(fence))
    }

    /// Returns the number of entries, void ones included.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().entries.len()).sum()
    }

    fn shard(&self, name: &ShortHash) -> MutexGuard<'_, Shard> {
        self.shards[usize::from(name[0]) % SHARDS].lock()
    }
}

/// The whole state of a map that holds at most one key. The models save and restore it between steps.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct L1State {
    pub fence: u64,
    pub epoch: u64,
    pub generation: u64,
    /// The epoch of the entry, if there is one.
    pub entry_epoch: Option<u64>,
}

#[cfg(test)]
impl L1 {
    pub(super) fn save(&self, name: &ShortHash) -> L1State {
        let shard = self.shard(name);
        L1State {
            fence: self.fence.load(Ordering::SeqCst),
            epoch: self.epoch.load(Ordering::SeqCst),
            generation: shard.generation,
            entry_epoch: shard.entries.get(name).map(|entry| entry.epoch),
        }
    }

    pub(super) fn restore(&self, state: L1State, cached: &Arc<CachedKey>) {
        self.fence.store(state.fence, Ordering::SeqCst);
        self.epoch.store(state.epoch, Ordering::SeqCst);
        let mut shard = self.shard(&cached.short_hash());
        shard.generation = state.generation;
        shard.entries.clear();
        if let Some(epoch) = state.entry_epoch {
            let entry = L1Entry { cached: cached.clone(), epoch, expires_at: u64::MAX };
            shard.entries.insert(cached.short_hash(), entry);
        }
    }
}
