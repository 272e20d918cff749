//! API keys: their format, the rules for creating and changing them, the verification of a request's key, and its rate
//! limit.
//!
//! `IdentityService` answers one question for every request: which caller does this key stand for? `PgIdentity` reads
//! the primary each time; `cache::CachedIdentity` puts Redis and the process in front of it; `Identity` is the one that
//! was chosen at start. `ApiKeyService` creates, changes, rotates and revokes keys: it checks what the caller may
//! grant, commits, and delivers the change to the caches.
//!
//! A key that cannot be verified because of an error is neither accepted nor refused: the caller gets the error.
//! Unknown, expired and revoked keys are refused alike.

mod any;
pub mod api_key;
pub mod cache;
mod caller;
mod change;
mod create;
pub mod draft;
mod error;
mod grants;
mod invalidation;
pub mod keys_service;
mod limits;
mod meter;
mod pg_identity;
pub mod rate_limit;
mod revoke;
mod rotate;
mod service;
mod store;

pub use any::Identity;
pub use caller::{Caller, Scope};
pub use create::{CreatedKey, Creator, KeyCreator};
pub use error::{IdentityError, KeyError};
pub use grants::GrantError;
pub use invalidation::Invalidation;
pub use keys_service::ApiKeyService;
pub use limits::KeyLimits;
pub use pg_identity::PgIdentity;
pub use service::IdentityService;
pub use store::KeyRecord;
