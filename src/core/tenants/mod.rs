//! Tenants: who owns everything else. Each has a network `default` from its first moment.

pub mod store;
