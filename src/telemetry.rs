//! Logs to standard error; metrics for Prometheus. Neither ever holds a key, a body or an environment value.

use std::{io::IsTerminal, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::environment::LogFormat;

/// Starts logging. What to log: `RUST_LOG`, default `info`.
pub fn log(format: LogFormat) {
    // bollard logs bodies, environments of tenants included, below `info`: never here.
    let bodies = "bollard=info".parse().expect("a fixed directive");
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,actix_server=warn"))
        .add_directive(bodies);
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
}

/// Starts recording metrics.
///
/// # Errors
/// When a recorder is installed already.
pub fn metrics() -> anyhow::Result<PrometheusHandle> {
    let seconds = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
    // A key that is kept in the process is checked in microseconds.
    let identity =
        [&[0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_15, 0.000_2, 0.000_25, 0.000_3][..], &seconds]
            .concat();
    Ok(PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("identity_verify_seconds".into()), &identity)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &seconds)?
        .install_recorder()?)
}

/// Keeps histograms from growing until they are scraped. For ever.
pub async fn upkeep(handle: PrometheusHandle) {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    loop {
        tick.tick().await;
        handle.run_upkeep();
    }
}
