//! The networks of a tenant. They are rows only: a host creates a network in its engine when an instance first needs it.

pub mod store;
