//! The job queue: jobs are rows in Postgres that workers claim under a lease; Redis carries best-effort wake-ups.
//!
//! ```text
//!             ┌──── retry, release, lease expired ────┐
//!             ▼                                       │
//! create ─► queued ────────── claim ─────────────► running ── finish ─► succeeded | failed | cancelled | superseded
//!             ├─ newer job of the instance ─► superseded
//!             └─ no host can hold the instance ─► failed
//! ```
//!
//! # How it works
//! The statement that accepts a request inserts the job, so an accepted request and its job exist together or not at
//! all. `notify` then pushes a message into a Redis list, and a worker that waits on the list wakes up. `claim` sets
//! the next jobs of one host to `running`, each with a lease (an end, a random id and a fencing token that grows with
//! every claim). `heartbeat` extends the leases of a worker together. `finish` ends an attempt. `rescue` queues the
//! jobs of a crashed worker again once their leases have expired. `workers` registers one worker per host.
//!
//! # What it guarantees
//! * A lost, repeated or reordered Redis message delays a job by one poll at most; it never decides which job runs.
//! * Heartbeat and finish change a job only with the token and the lease id of its present claim, so that a worker
//!   whose job was rescued writes nothing.
//! * At most one job of an instance runs, and only the oldest unfinished one (`seq`) is claimed.
//! * Times are those of Postgres' `now()`; no statement compares clocks of two machines.
//! * A row that this release cannot read fails that job only (`claim`), never the batch.
//!
//! # Lock order
//! A statement that locks rows of several tables locks the instance first, then its job, then addresses, ports and
//! events. Two statements with opposite orders would deadlock under load; `tests/it/queue/contention.rs` shows both.

pub mod claim;
pub mod finish;
pub mod heartbeat;
pub mod job;
pub mod notify;
pub mod rescue;
pub mod retention;
pub mod retry;
pub mod stats;
pub mod step;
pub mod store;
pub mod workers;

pub use job::{JobKind, JobStatus};
