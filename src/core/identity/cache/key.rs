//! A key as the caches hold it, and the results of looking one up on the primary.

use std::sync::Arc;

use time::OffsetDateTime;

use crate::core::{id::KeyId, identity::caller::Caller};

/// The first 16 bytes of a key's hash. They name the key in Redis, in the invalidation log and in the process; entries
/// carry all 32 bytes, which are compared before an entry is used.
pub type ShortHash = [u8; 16];

/// A valid key as it is cached.
#[derive(Clone, Debug, PartialEq)]
pub struct CachedKey {
    /// All 32 bytes of the key's hash, compared in constant time.
    pub hash: [u8; 32],
    /// Grows with each change of the key or of its tenant.
    pub ver: i64,
    /// The caller that the key stands for.
    pub caller: Arc<Caller>,
    /// When the primary was read, in seconds since 1970 by Postgres' clock.
    pub filled_at: f64,
    /// How long that read took, in seconds. The longer it takes, the earlier the entry is refreshed.
    pub read_seconds: f64,
}

impl CachedKey {
    /// Returns the key's short hash.
    pub fn short_hash(&self) -> ShortHash {
        short_hash(&self.hash)
    }

    /// Returns whether the key has expired at `now`, in seconds since 1970 by Postgres' clock.
    pub fn is_expired(&self, now: f64) -> bool {
        self.caller.expires_at.is_some_and(|at| unix_seconds(at) <= now)
    }
}

/// Returns the first 16 bytes of a key's hash.
pub fn short_hash(hash: &[u8; 32]) -> ShortHash {
    let mut short = [0; 16];
    short.copy_from_slice(&hash[..16]);
    short
}

#[allow(clippy::cast_precision_loss, reason = "microseconds are exact until the year 2255")]
pub(super) fn unix_seconds(at: OffsetDateTime) -> f64 {
    (at.unix_timestamp_nanos() / 1000) as f64 / 1e6
}

/// The result of looking a hash up on the primary.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyLookup {
    /// The key is valid.
    Valid(Arc<CachedKey>),
    /// The key is revoked, expired, or its tenant is suspended. It becomes valid again only by a change that raises
    /// `ver`.
    Refused {
        /// The key's version when it was read.
        ver: i64,
    },
    /// No key has this hash, or the key is not valid yet.
    Unknown {
        /// Seconds until the key's `not_before`; `None` when no key has the hash.
        valid_in_s: Option<f64>,
    },
}

/// The uses of one key.
#[derive(Clone, Copy, Debug)]
pub struct KeyUses {
    /// The key.
    pub key: KeyId,
    /// When it was last used.
    pub last_at: OffsetDateTime,
    /// How often it was used since the last flush.
    pub count: i64,
}
