//! What every HTTP listener of this program shares: limits, request ids, problem+json, strict queries and bodies.
//!
//! Promises: each response carries `X-Request-Id`, each error is a problem of the closed code set, a panic included, and
//! neither a slow nor a huge client holds a thread. Knows nothing of tenants or instances.

pub mod body;
pub mod connection;
pub mod listener;
pub mod metrics;
pub mod panics;
pub mod problem;
pub mod query;
pub mod request_id;
pub mod request_log;
pub mod route;
pub mod strict;
pub mod timestamp;
