//! Refreshing ahead: a value near its end is read again before it is missed.

use std::{
    collections::HashSet,
    sync::{Arc, MutexGuard, PoisonError},
};

use super::{
    CachedKey, KeyHash,
    entry::{CasToken, VALID_MS},
    service::{Inner, QUEUE, random_unit},
};

/// Refresh when a value is this much of its life old, at the latest.
const OLD: f64 = 0.8;

impl Inner {
    /// Starts a refresh when the value is near its end, the earlier the longer a read takes; by chance, so that the
    /// processes do not do it all at once. The new value takes the old one's place only if that still stands: the same
    /// rule as for a lease.
    pub(super) fn refresh_ahead(self: &Arc<Self>, cached: &Arc<CachedKey>, prefix: CasToken) {
        let Some(now) = self.feed.now() else { return };
        #[allow(clippy::cast_precision_loss, reason = "minutes")]
        let life = VALID_MS as f64 / 1000.0;
        let age = now - cached.filled_at;
        let soon = -cached.took * random_unit().max(f64::MIN_POSITIVE).ln() >= life - age;
        let name = cached.name();
        if !(soon || age > OLD * life) || !self.refreshing().insert(name) {
            return;
        }
        metrics::counter!("identity_refresh_ahead_total").increment(1);
        let (inner, hash) = (self.clone(), cached.hash);
        tokio::spawn(async move {
            if let Ok(fact) = inner.read(&hash, QUEUE).await {
                inner.fill(&inner.tier.redis_key(&name), &prefix, &fact).await;
            }
            inner.refreshing().remove(&name);
        });
    }

    fn refreshing(&self) -> MutexGuard<'_, HashSet<KeyHash>> {
        self.refreshing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
