//! Primary and replica: which of them serves what, how failures of either affect requests, and whether all statements of
//! the project can be prepared.

mod pool;
mod prepare;
mod replica;
mod standby;
mod statements;

use std::time::Duration;

use app::{
    config::database::{DatabaseConfig, PostgresUrl},
    core::db::DualDb,
};

use crate::support::Cluster;

/// Opens the pool of a process of this cluster, without a replica.
fn dual(cluster: &Cluster, max_conns: usize) -> DualDb {
    open(&cluster.database_url, None, max_conns)
}

fn open(primary: &str, replica: Option<&str>, max_conns: usize) -> DualDb {
    let url = |text: &str| PostgresUrl::parse(text).unwrap();
    let config = DatabaseConfig { primary: url(primary), replica: replica.map(url), max_conns, wait: Duration::ZERO };
    DualDb::new(&config).unwrap()
}
