//! Keys cached in Redis and in the process: a revoked key is not accepted whatever fails, and the cost is bounded.
//!
//! Tests share a Redis only where nothing happens to it; those that inject faults into Redis start a server of their
//! own.

mod changes;
mod clock;
mod degrade;
pub mod fault_proxy;
mod flood;
mod granting;
pub mod key_factory;
mod keys;
mod lua;
mod mixed;
mod naive;
mod outage;
mod peppers;
mod race;
mod raw_client;
mod recovery;
mod suspension;
mod two_replicas;

use tokio::sync::{Mutex, MutexGuard};

use crate::support::{App, Cluster, cluster::base_url};

/// Runs these tests one after the other: they measure times and load the machine.
async fn serial() -> MutexGuard<'static, ()> {
    static SERIAL: Mutex<()> = Mutex::const_new(());
    SERIAL.lock().await
}

/// Starts an API replica and returns it with its address.
fn serve(cluster: &Cluster) -> (App, String) {
    let api = cluster.spawn("serve");
    let base = base_url(&api);
    (api, base)
}

/// Returns how many key look-ups in Redis timed out, by the log of a process of `TwoReplicas`.
fn redis_timeouts(api: &App) -> usize {
    api.log().matches("redis did not answer, reading from the primary").count()
}

/// Returns the sum of a process' metric over all series with these labels.
async fn metric(base: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let text = reqwest::get(format!("{base}/metrics")).await.unwrap().text().await.unwrap();
    let has = |line: &str| labels.iter().all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")));
    let series =
        text.lines().filter(|line| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} ")));
    series.filter(|line| has(line)).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Returns the median and the 99th percentile.
fn percentiles(mut all: Vec<std::time::Duration>) -> (std::time::Duration, std::time::Duration) {
    all.sort_unstable();
    (all[all.len() / 2], all[(all.len() * 99 / 100).min(all.len() - 1)])
}
