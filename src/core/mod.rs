//! The control plane's nouns and the protocol in which they meet.
//!
//! Nouns do not import each other. They meet in `protocol` (one statement each, one lock order), in the worker, and in
//! the database's foreign keys. Nothing here knows HTTP or containers.

pub mod breaker;
pub mod db;
pub mod hosts;
pub mod id;
pub mod identity;
pub mod instances;
pub mod invalid;
pub mod read_your_writes;

pub mod maintenance;

pub mod idempotency;
pub mod networks;
pub mod page;
pub mod queue;
pub mod redis;
pub mod tenants;
pub mod text;
pub mod text_enum;
