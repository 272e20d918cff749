//! How full this host is: slots, and what its instances were promised of processors and memory.

use std::time::Duration;

use super::ProvisionWorker;
use crate::core::queue::stats;

const PERIOD: Duration = Duration::from_secs(5);
const MIB: f64 = 1024.0 * 1024.0;

/// Sets the gauges for ever. A host without a limit has no capacity to show.
pub(super) async fn run(worker: &ProvisionWorker) {
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        set_slots("busy", worker.leases.count());
        set_slots("free", worker.me.slots.saturating_sub(worker.leases.count()));
        match stats::committed_resources(&worker.db, worker.me.host).await {
            Ok(committed) => report(worker, committed.cpu_millis, committed.memory_mib),
            Err(error) => tracing::debug!(%error, "could not count what is committed; the next round will"),
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "a worker has 1024 slots at most")]
fn set_slots(state: &'static str, count: usize) {
    metrics::gauge!("worker_slots", "state" => state).set(count as f64);
}

#[allow(clippy::cast_precision_loss, reason = "no host has 2^52 MiB or thousandths of a core")]
fn report(worker: &ProvisionWorker, cpu_millis: i64, memory_mib: i64) {
    metrics::gauge!("host_cpu_committed_cores").set(cpu_millis as f64 / 1000.0);
    metrics::gauge!("host_memory_committed_bytes").set(memory_mib as f64 * MIB);
    let host = &worker.config.host;
    if let Some(cpu_millis) = host.cpu_millis {
        metrics::gauge!("host_cpu_capacity_cores").set(cpu_millis as f64 / 1000.0);
    }
    if let Some(memory_mib) = host.memory_mib {
        metrics::gauge!("host_memory_capacity_bytes").set(memory_mib as f64 * MIB);
    }
}
