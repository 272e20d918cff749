//! Networks as the tenant sees them. Bookkeeping only: a host realises one when it is first used there.

pub mod store;
