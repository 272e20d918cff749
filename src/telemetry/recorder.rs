//! Metrics for Prometheus, as `catalogue` lists them.

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::logs;
use crate::telemetry::metrics::{Kind, METRICS};

/// Starts recording metrics, and says what each is.
///
/// # Errors
/// When a recorder is installed already.
pub fn metrics() -> anyhow::Result<PrometheusHandle> {
    let seconds = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
    // A key that is kept in the process is checked in microseconds.
    let identity =
        [&[0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_15, 0.000_2, 0.000_25, 0.000_3][..], &seconds]
            .concat();
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("identity_verify_seconds".into()), &identity)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &seconds)?
        .install_recorder()?;
    for (kind, name, help) in METRICS {
        match kind {
            Kind::Counter => ::metrics::describe_counter!(*name, *help),
            Kind::Gauge => ::metrics::describe_gauge!(*name, *help),
            Kind::Histogram => ::metrics::describe_histogram!(*name, *help),
        }
    }
    Ok(handle)
}

/// Keeps histograms from growing until they are scraped, and records what this process uses and how many log lines it
/// dropped. Runs until the process ends.
pub async fn upkeep(handle: PrometheusHandle) {
    let process = metrics_process::Collector::default();
    process.describe();
    let mut reported = 0;
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    loop {
        tick.tick().await;
        process.collect();
        reported = logs::report_dropped(reported);
        handle.run_upkeep();
    }
}
