//! Records the metrics of this process and renders them in Prometheus' text format.
//!
//! Counters and histograms are recorded where things happen. A gauge that shows the age or the size of something is
//! computed when `/metrics` is scraped, by a function that its part registers with `on_scrape`: a loop that wrote its own
//! age would leave the last good value behind when it hangs, and the alarm on that gauge would never fire.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use parking_lot::RwLock;

use super::logs;
use crate::telemetry::metrics::{Kind, METRICS, Metric};

/// How often histograms are compacted, and the process' own metrics and dropped log lines recorded.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

type SetGauges = Box<dyn Fn() + Send + Sync>;

/// The metrics of this process.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
    on_scrape: Arc<RwLock<BTreeMap<&'static str, SetGauges>>>,
}

impl Metrics {
    fn new(handle: PrometheusHandle) -> Self {
        Self { handle, on_scrape: Arc::default() }
    }

    /// Registers a function that sets the gauges of one part. It is called at each scrape, must not block, and replaces an
    /// earlier function of the same `part`.
    pub fn on_scrape(&self, part: &'static str, set_gauges: impl Fn() + Send + Sync + 'static) {
        self.on_scrape.write().insert(part, Box::new(set_gauges));
    }

    /// Calls the functions of all parts, then returns all metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        self.on_scrape.read().values().for_each(|set_gauges| set_gauges());
        self.handle.render()
    }
}

/// Starts recording metrics, and describes each of them.
///
/// # Errors
/// When a recorder is installed already.
pub fn metrics() -> anyhow::Result<Metrics> {
    let seconds = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
    // A key that is cached in the process is checked in microseconds.
    let identity =
        [&[0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_15, 0.000_2, 0.000_25, 0.000_3][..], &seconds]
            .concat();
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("identity_verify_seconds".into()), &identity)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &seconds)?
        .install_recorder()?;
    for Metric { kind, name, help } in METRICS {
        match kind {
            Kind::Counter => ::metrics::describe_counter!(*name, *help),
            Kind::Gauge => ::metrics::describe_gauge!(*name, *help),
            Kind::Histogram => ::metrics::describe_histogram!(*name, *help),
        }
    }
    Ok(Metrics::new(handle))
}

/// Compacts histograms, which grow with every observation until then, and records the metrics of the process itself and the
/// number of dropped log lines, every `UPKEEP_INTERVAL`. Never returns.
pub async fn upkeep(metrics: Metrics) {
    let process = metrics_process::Collector::default();
    process.describe();
    let mut reported = 0;
    let mut tick = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        tick.tick().await;
        process.collect();
        reported = logs::report_dropped(reported);
        metrics.handle.run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn gauges_of_a_part_are_computed_at_each_scrape() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let (metrics, age) = (Metrics::new(recorder.handle()), AtomicU32::new(0));
        metrics.on_scrape("test", move || {
            ::metrics::gauge!("age_seconds").set(f64::from(age.fetch_add(1, Ordering::Relaxed)));
        });

        let [first, second] = [(); 2].map(|()| ::metrics::with_local_recorder(&recorder, || metrics.render()));

        assert!(first.contains("age_seconds 0") && second.contains("age_seconds 1"), "{first}{second}");
    }
}
