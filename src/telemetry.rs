//! Logs to standard error; metrics for Prometheus. Neither ever holds a key, a body or an environment value.

use std::{io::IsTerminal, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::{Level, Metadata};
use tracing_subscriber::{EnvFilter, filter::filter_fn, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{
    catalogue::{Kind, METRICS},
    config::environment::LogFormat,
};

/// Below `info` these log what tenants sent: bodies the one, the parameters of statements the other.
const INDISCREET: [&str; 2] = ["bollard", "tokio_postgres"];

/// Starts logging what `filter` says.
///
/// # Errors
/// When it is no filter.
pub fn log(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)?;
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    // A filter of its own: a directive could be overruled by a longer one in RUST_LOG.
    let filtered = tracing_subscriber::registry().with(filter).with(filter_fn(is_discreet));
    match format {
        LogFormat::Text => filtered.with(logs).init(),
        LogFormat::Json => filtered.with(logs.json().flatten_event(true)).init(),
    }
    Ok(())
}

fn is_discreet(metadata: &Metadata<'_>) -> bool {
    let of = metadata.target().split("::").next().unwrap_or_default();
    *metadata.level() <= Level::INFO || !INDISCREET.contains(&of)
}

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
            Kind::Counter => metrics::describe_counter!(*name, *help),
            Kind::Gauge => metrics::describe_gauge!(*name, *help),
            Kind::Histogram => metrics::describe_histogram!(*name, *help),
        }
    }
    Ok(handle)
}

/// Keeps histograms from growing until they are scraped, and tells what this process uses. For ever.
pub async fn upkeep(handle: PrometheusHandle) {
    let process = metrics_process::Collector::default();
    process.describe();
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    loop {
        tick.tick().await;
        process.collect();
        handle.run_upkeep();
    }
}
