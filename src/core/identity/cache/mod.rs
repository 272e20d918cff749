//! API keys cached in Redis and in the process, and never accepted after they were revoked.
//!
//! `entry` is what Redis holds, `verify` the protocol as a pure state machine, `flight` joins callers, `l1` the map in
//! the process, `log` and `feed` its two channels of news, `tier` the Redis commands, `service` drives it all.
//! `docs/identity.md` states the bounds and the proof; the tests explore every interleaving of `verify` and `l1`.

pub mod entry;
mod feed;
mod invalidations;
mod l1;
pub mod redis_tier;
mod refresh;
mod revoke;
mod service;
mod single_flight;
pub mod store;
mod usage;
pub mod verify;

#[cfg(test)]
mod model;

use std::sync::Arc;

use time::OffsetDateTime;

pub use revoke::{Propagation, Revoker};
pub use service::{CachedIdentity, Start};

use super::Caller;

/// The first half of a key's hash: names the key in Redis, in the log and in the process.
pub type KeyHash = [u8; 16];

/// What is cached of a valid key.
#[derive(Clone, Debug, PartialEq)]
pub struct CachedKey {
    /// All 32 bytes, compared in constant time.
    pub hash: [u8; 32],
    /// Grows with each change of the key or of its tenant.
    pub ver: i64,
    pub caller: Arc<Caller>,
    /// By Postgres' clock, seconds since 1970: when the primary was read.
    pub filled_at: f64,
    /// How long that took, in seconds; refreshing ahead starts the earlier the longer it takes.
    pub took: f64,
}

impl CachedKey {
    pub fn name(&self) -> KeyHash {
        name_of(&self.hash)
    }

    /// Whether it has expired by then, seconds since 1970 by Postgres' clock.
    pub fn expired(&self, now: f64) -> bool {
        self.caller.expires_at.is_some_and(|at| seconds(at) <= now)
    }
}

pub fn name_of(hash: &[u8; 32]) -> KeyHash {
    let mut name = [0; 16];
    name.copy_from_slice(&hash[..16]);
    name
}

#[allow(clippy::cast_precision_loss, reason = "microseconds are kept until the year 2255")]
fn seconds(at: OffsetDateTime) -> f64 {
    (at.unix_timestamp_nanos() / 1000) as f64 / 1e6
}

/// What Postgres says of a hash.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyLookup {
    Valid(Arc<CachedKey>),
    /// Revoked, expired, suspended: never good again without a change that bumps `ver`.
    Refused {
        ver: i64,
    },
    /// No such key; or not good yet, for this many seconds.
    Unknown {
        until_s: Option<f64>,
    },
}
