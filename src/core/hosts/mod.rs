//! Provisioning hosts, and the cluster that they belong to.
//!
//! A host's row is written by its worker (`core::queue::workers`), which registers with a `HostSpec` when it starts.

pub mod store;

use std::collections::BTreeMap;

/// The name, address, labels and capacity of a host, from its worker's configuration.
#[derive(Clone, Debug)]
pub struct HostSpec {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Where the published ports of its instances are reached; `None`: at its name.
    pub address: Option<String>,
    /// Labels that a placement may ask for.
    pub labels: BTreeMap<String, String>,
    /// The processors for instances in thousandths of a core; `None`: no limit.
    pub cpu_millis: Option<i64>,
    /// The memory for instances in MiB; `None`: no limit.
    pub memory_mib: Option<i64>,
}
