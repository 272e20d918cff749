//! Tenants: the owners of keys, networks, instances and jobs. Each has a network `default` from its creation on.

mod service;
pub mod store;

pub use service::{Suspension, TenantService};
