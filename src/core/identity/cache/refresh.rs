//! Refreshing ahead: a value in Redis that nears its end is read again before it expires.
//!
//! The new value replaces the old one only if the old one is still there, which is the same rule as for a lease; so a
//! refresh cannot undo a revocation.

use std::sync::Arc;

use super::{
    entry::{CasToken, VALID_TTL_MS},
    key::CachedKey,
    lookup::{Lookups, PRIMARY_QUEUE_TIMEOUT},
};
use crate::core::random::random_unit;

/// A value older than this part of its life is refreshed.
const REFRESH_AGE: f64 = 0.8;

impl Lookups {
    /// Starts a refresh when the value nears its end. The moment is random, so that processes do not all refresh at
    /// once, and is earlier the longer a read takes (XFetch, Vattani et al., VLDB 2015).
    pub(super) fn refresh_ahead(self: &Arc<Self>, cached: &Arc<CachedKey>, token: CasToken) {
        let Some(now) = self.feed.postgres_now() else { return };
        #[allow(clippy::cast_precision_loss, reason = "minutes")]
        let ttl = VALID_TTL_MS as f64 / 1000.0;
        let age = now - cached.filled_at;
        let is_due = -cached.read_seconds * random_unit().max(f64::MIN_POSITIVE).ln() >= ttl - age;
        let name = cached.short_hash();
        if !(is_due || age > REFRESH_AGE * ttl) || !self.refreshing.lock().insert(name) {
            return;
        }
        metrics::counter!("identity_refresh_ahead_total").increment(1);
        let (lookups, hash) = (self.clone(), cached.hash);
        tokio::spawn(async move {
            if let Ok(lookup) = lookups.read_primary(&hash, PRIMARY_QUEUE_TIMEOUT).await {
                lookups.fill(&lookups.tier.redis_key(&name), &token, &lookup).await;
            }
            lookups.refreshing.lock().remove(&name);
        });
    }
}
