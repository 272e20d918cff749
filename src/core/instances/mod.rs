//! Instances: the request of a tenant, the statuses of an instance, and the statements that accept and read it.
//!
//! `spec` parses a request. `create` and `delete` accept one with a single statement, which also queues a job in
//! `core::queue`; from then on workers change the status, by the one table of transitions in `state`. `observe` records
//! what a host finds about a container outside any job. The API calls `service`.

pub mod create;
pub mod delete;
pub mod observe;
mod reason;
mod refusal;
mod restart_policy;
pub mod service;
pub mod spec;
pub mod state;
pub mod store;

pub use reason::{Reason, ReasonCode};
pub use refusal::Refusal;
pub use restart_policy::RestartPolicy;
pub use service::InstanceService;
pub use spec::{InstanceSpec, RawInstance};
pub use state::{Status, Transition};
