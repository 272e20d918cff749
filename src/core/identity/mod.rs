//! Who is asking: API keys, what they may do, and the one question asked on every request.
//!
//! `IdentityService` is the seam: today each question goes to the primary (`PgIdentity`); a cache decorates it.
//! Promises: an error is never an answer; unknown, expired and revoked keys look alike.

pub mod api_key;
mod caller;
mod error;
mod service;
pub mod store;

pub use caller::{Caller, Scope};
pub use error::IdentityError;
pub use service::{IdentityService, PgIdentity};
