//! The statements in which nouns meet: one file each, one round trip each, one lock order.
//!
//! Instance, then job, then address, port, event. Every statement here that touches an instance and its jobs locks the
//! instance's row first (`… for update`; `skip locked` where waiting is pointless): opposite orders deadlock under load.
//! A tenant's row comes before those of its keys. Postgres' `now()` is the only clock.

pub mod accept_create;
pub mod accept_delete;
pub mod accept_key;
pub mod boot;
pub mod census;
pub mod change_key;
pub mod claim;
pub mod finish;
pub mod heartbeat;
mod idempotent;
pub mod observe;
pub mod reap;

pub use idempotent::{IdempotencyKey, Replay, forget_old};
