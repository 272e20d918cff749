//! The queue: jobs are rows of Postgres that workers claim under a lease; Redis carries best-effort wake-ups.
//!
//! ```text
//! queued ── claim ──► running ── finish ──► succeeded | failed | cancelled | queued again
//!                        └── lease expired ── rescue ──► queued again | failed
//! ```
//!
//! Each file is one statement with its types. A statement that touches an instance and its jobs locks the instance's row
//! first, then the job's, then those of addresses, ports and events; opposite orders would deadlock under load. Postgres'
//! `now()` is the only clock.

pub mod claim;
pub mod finish;
pub mod heartbeat;
pub mod job;
pub mod notify;
pub mod rescue;
pub mod retry;
pub mod stats;
pub mod step;
pub mod store;
pub mod workers;

pub use job::{JobKind, JobStatus};
