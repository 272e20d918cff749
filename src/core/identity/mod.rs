//! Who is asking: API keys, what they may do, and the one question asked on every request.
//!
//! `PgIdentity` asks the primary each time; `cache::CachedIdentity` stands in front of it.
//! Promises: an error is never an answer; unknown, expired and revoked keys look alike.

pub mod api_key;
pub mod cache;
mod caller;
pub mod change;
pub mod create;
mod error;
mod meter;
pub mod rate_limit;
mod service;
pub mod store;

pub use caller::{Caller, Scope};
pub use error::IdentityError;
pub use service::{Identity, IdentityService, PgIdentity};
