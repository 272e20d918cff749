//! Builds the parts of a process and starts them.
//!
//! A subcommand resolves its configuration and then uses these in order: `database` waits for Postgres and its schema,
//! `backends` connects to the container runtime, `api` and `worker` start the two long-lived parts. `supervisor` runs
//! their background loops. Each step fails with an error that names the variable to change.

mod api;
mod backends;
mod database;
pub mod supervisor;
mod worker;

pub use api::{ApiParts, cached_identity, start_api};
pub use backends::backends;
pub use database::database;
pub use worker::{WorkParts, start_worker};

use std::sync::{Arc, OnceLock};

use crate::{
    config::lease::LeaseTimes,
    core::{db::DualDb, maintenance::Maintenance},
    http::metrics::RenderMetrics,
    telemetry::{self, Metrics},
};

/// Returns the recorder of this process' metrics. The first call installs it; what is recorded earlier is lost.
///
/// # Errors
/// When another recorder is installed.
pub fn metrics() -> anyhow::Result<Metrics> {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    if let Some(metrics) = METRICS.get() {
        return Ok(metrics.clone());
    }
    let metrics = telemetry::metrics()?;
    supervisor::run("metrics", telemetry::upkeep(metrics.clone()));
    Ok(METRICS.get_or_init(|| metrics).clone())
}

/// Returns what the handlers of `/metrics` call.
fn renderer(metrics: Metrics) -> RenderMetrics {
    Arc::new(move || metrics.render())
}

/// Starts the maintenance of the queue, and the gauges of the queue and of the connections to Postgres.
fn start_maintenance(metrics: &Metrics, db: &DualDb, times: LeaseTimes) {
    let pools = db.clone();
    metrics.on_scrape("postgres", move || pools.report());
    let maintenance = Maintenance::new(db.clone(), times);
    let queue = maintenance.clone();
    metrics.on_scrape("maintenance", move || queue.report());
    supervisor::run("maintenance", async move { maintenance.run().await });
}
