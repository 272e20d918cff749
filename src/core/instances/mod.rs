//! Instances: what a tenant asks for, the states it passes through, and how it is read back.

pub mod create;
pub mod delete;
pub mod observe;
mod reason;
mod restart_policy;
pub mod spec;
pub mod state;
pub mod store;

pub use reason::{Reason, ReasonCode};
pub use restart_policy::RestartPolicy;
pub use spec::{InstanceSpec, RawInstance};
pub use state::{Status, Transition};
