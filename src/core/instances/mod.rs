//! Instances: what a tenant asks for, the states it passes through, and how it is read back.

pub mod spec;
pub mod state;
pub mod store;

pub use spec::{InstanceSpec, RawInstance};
pub use state::{Status, Transition};
