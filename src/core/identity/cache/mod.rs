//! API keys cached in Redis and in each process, and never accepted after their revocation has returned.
//!
//! A verification looks in the process (`l1`), then in Redis (`redis_tier`), then reads the primary. Two channels keep
//! the caches right: every process polls the *invalidation log* in Redis every 50 ms (`invalidations`) and reads the
//! versions of recently changed keys from the primary every second (`versions`). A change of a key commits in Postgres
//! first and is then written to Redis (`propagate`).
//!
//! | module | what it holds |
//! |---|---|
//! | `key` | what is cached of a key |
//! | `entry` | the signed values in Redis |
//! | `verify` | the protocol of one verification, a state machine without I/O |
//! | `single_flight` | callers that share one read of the primary |
//! | `service` | `CachedIdentity`, which runs all of it; `lookup` is the part that talks to Redis and the primary |
//! | `usage` | when keys were last used |
//!
//! Under failure: an error neither accepts nor refuses a key, a cache that may have missed an invalidation is not used,
//! and a change that Redis did not take stays in an outbox in Postgres until some process delivers it.
//! `docs/identity.md` states the bounds and the proof; `model` explores every interleaving of the decision code. Redis
//! client libraries offer client-side caching and `moka` a map with `get_with`; both can hand out a value that was read
//! before an invalidation, which is why the map, the single flight and the log reader here are our own.

pub mod entry;
mod invalidations;
mod key;
mod l1;
mod lookup;
mod outbox;
mod propagate;
pub mod redis_tier;
mod refresh;
mod service;
mod single_flight;
pub mod store;
mod usage;
pub mod verify;
mod versions;

#[cfg(test)]
mod model;

pub use key::{CachedKey, KeyLookup, ShortHash, short_hash};
pub use propagate::{Propagation, Propagator};
pub use service::{CachedIdentity, Start};
