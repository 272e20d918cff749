//! The parts that all HTTP listeners of this program share: limits, request ids, logs and metrics of requests,
//! problem+json, and strict readers of queries, JSON bodies and times.
//!
//! Every response carries `X-Request-Id`; every error, a panic included, is a problem of the closed code set; and
//! neither a slow client nor a huge body holds a thread. Nothing here depends on tenants or instances.

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
