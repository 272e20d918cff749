//! Gauges of this host: its slots, and the processor time and memory that its instances have reserved.

use std::time::Duration;

use super::provision_worker::ProvisionWorker;
use crate::core::queue::stats;

const REPORT_INTERVAL: Duration = Duration::from_secs(5);
const BYTES_PER_MIB: f64 = 1024.0 * 1024.0;

/// Sets the gauges until it is dropped. A host without a limit has no capacity to report.
pub(super) async fn run(worker: &ProvisionWorker) {
    let mut tick = tokio::time::interval(REPORT_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        set_slots("busy", worker.leases.count());
        set_slots("free", worker.identity.slots.saturating_sub(worker.leases.count()));
        match stats::committed_resources(&worker.db, worker.identity.host).await {
            Ok(committed) => report(worker, committed.cpu_millis, committed.memory_mib),
            Err(error) => tracing::debug!(%error, "could not read the committed resources; the next round tries again"),
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
    metrics::gauge!("host_memory_committed_bytes").set(memory_mib as f64 * BYTES_PER_MIB);
    let host = &worker.config.host;
    if let Some(cpu_millis) = host.cpu_millis {
        metrics::gauge!("host_cpu_capacity_cores").set(cpu_millis as f64 / 1000.0);
    }
    if let Some(memory_mib) = host.memory_mib {
        metrics::gauge!("host_memory_capacity_bytes").set(memory_mib as f64 * BYTES_PER_MIB);
    }
}
