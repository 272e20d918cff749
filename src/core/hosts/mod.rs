//! Provisioning hosts: what they offer, and what an installation is called outside Postgres.

pub mod store;

use std::collections::BTreeMap;

/// What a host offers. `None`: no limit.
#[derive(Clone, Debug)]
pub struct HostSpec {
    pub name: String,
    pub address: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub cpu_millis: Option<i64>,
    pub memory_mib: Option<i64>,
}
