//! Progress lines while the load runs, and the table at the end.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use goose::metrics::GooseMetrics;

/// Requests that ended, with or without a response.
static REQUESTS: AtomicU64 = AtomicU64::new(0);
/// The sum of their durations in microseconds.
static MICROS: AtomicU64 = AtomicU64::new(0);
/// Requests that did not get the expected response.
static FAILED: AtomicU64 = AtomicU64::new(0);
/// Requests by status since the start, including the ramp-up. Status 0 means no response.
static STATUSES: Mutex<BTreeMap<u16, u64>> = Mutex::new(BTreeMap::new());

/// Counts one request. `status` is 0 when there was no response.
pub fn count(status: u16, as_expected: bool, took: Duration) {
    REQUESTS.fetch_add(1, Ordering::Relaxed);
    MICROS.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    if !as_expected {
        FAILED.fetch_add(1, Ordering::Relaxed);
    }
    *STATUSES.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() += 1;
}

/// Counts a response that had the expected status and is wrong otherwise, and prints why.
pub fn wrong(what: &str) {
    eprintln!("wrong response: {what}");
    FAILED.fetch_add(1, Ordering::Relaxed);
}

/// Prints a line every five seconds. Never returns.
#[allow(clippy::cast_precision_loss, reason = "the figures are only printed")]
pub async fn progress() {
    let (started, mut last, mut last_at) = (Instant::now(), (0, 0), Instant::now());
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let now = (REQUESTS.load(Ordering::Relaxed), MICROS.load(Ordering::Relaxed));
        let (requests, micros) = ((now.0 - last.0) as f64, (now.1 - last.1) as f64);
        eprintln!(
            "    {:>4} s  {:>7.0} requests/s  mean {:>8.1} ms  {:>9} in total  {} failed",
            started.elapsed().as_secs(),
            requests / last_at.elapsed().as_secs_f64(),
            micros / 1000.0 / requests.max(1.0),
            now.0,
            FAILED.load(Ordering::Relaxed)
        );
        (last, last_at) = (now, Instant::now());
    }
}

/// Times and statuses of one route, or of all together.
#[derive(Default)]
struct Row {
    times: BTreeMap<u64, usize>,
    slowest: u64,
    failed: usize,
    statuses: BTreeMap<u16, usize>,
}

impl Row {
    fn count(&self) -> usize {
        self.times.values().sum()
    }

    /// Returns a quantile in milliseconds: the lower bound of its bucket.
    #[allow(clippy::cast_precision_loss, reason = "counts of requests")]
    fn quantile(&self, q: f64) -> f64 {
        let rank = self.count() as f64 * q;
        let mut below = 0;
        for (micros, count) in &self.times {
            below += count;
            if below as f64 >= rank {
                return *micros as f64 / 1000.0;
            }
        }
        0.0
    }
}

/// Prints the table and writes the summary. Returns whether all requests got the expected response.
///
/// # Errors
/// The summary cannot be written.
#[allow(clippy::cast_precision_loss, reason = "counts of requests")]
pub fn table(metrics: &GooseMetrics) -> std::io::Result<bool> {
    let mut rows = BTreeMap::<String, Row>::new();
    for (name, request) in &metrics.requests {
        for of in [name.as_str(), "all"] {
            let row = rows.entry(of.into()).or_default();
            for (micros, count) in &request.raw_data.times_us {
                *row.times.entry(*micros).or_default() += count;
            }
            row.slowest = row.slowest.max(request.raw_data.maximum_time_us);
            row.failed += request.fail_count;
            for (status, count) in &request.status_code_counts {
                *row.statuses.entry(*status).or_default() += count;
            }
        }
    }
    let seconds = metrics.duration.max(1) as f64;
    println!("| request | per second | p50 ms | p95 ms | p99 ms | max ms | failed | statuses |");
    println!("|---|---|---|---|---|---|---|---|");
    for (name, row) in &rows {
        let statuses = row.statuses.iter().fold(String::new(), |mut text, (status, count)| {
            let _ = write!(text, "{}{status} × {count}", if text.is_empty() { "" } else { ", " });
            text
        });
        println!(
            "| {name} | {:.1} | {:.1} | {:.1} | {:.1} | {:.0} | {} | {statuses} |",
            row.count() as f64 / seconds,
            row.quantile(0.5),
            row.quantile(0.95),
            row.quantile(0.99),
            row.slowest as f64 / 1000.0,
            row.failed,
        );
    }
    let (all, failed) = (rows.get("all"), FAILED.load(Ordering::Relaxed));
    if let (Ok(path), Some(all)) = (std::env::var("APP_LOAD_SUMMARY"), all) {
        let text = format!(
            "requests={}\nrate={:.1}\np50={:.1}\np95={:.1}\np99={:.1}\nfailed={failed}\n",
            REQUESTS.load(Ordering::Relaxed),
            all.count() as f64 / seconds,
            all.quantile(0.5),
            all.quantile(0.95),
            all.quantile(0.99),
        );
        std::fs::write(path, text)?;
    }
    if failed > 0 {
        let statuses = STATUSES.lock().unwrap_or_else(PoisonError::into_inner);
        eprintln!("{failed} requests without the expected response; statuses since the start (0: none): {statuses:?}");
    }
    Ok(failed == 0)
}
