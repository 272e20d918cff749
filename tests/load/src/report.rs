//! What is shown: a line while it runs, and the table in the end.

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

static ANSWERS: AtomicU64 = AtomicU64::new(0);
static MICROS: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);
/// All statuses since the start, ramp included; 0: no answer.
static STATUSES: Mutex<BTreeMap<u16, u64>> = Mutex::new(BTreeMap::new());

/// Counts one request.
pub fn count(status: u16, as_expected: bool, took: Duration) {
    ANSWERS.fetch_add(1, Ordering::Relaxed);
    MICROS.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    if !as_expected {
        WRONG.fetch_add(1, Ordering::Relaxed);
    }
    *STATUSES.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() += 1;
}

/// Counts what is wrong though the status was right.
pub fn wrong(what: &str) {
    eprintln!("wrong: {what}");
    WRONG.fetch_add(1, Ordering::Relaxed);
}

/// One line every five seconds, for ever.
#[allow(clippy::cast_precision_loss, reason = "for people to read")]
pub async fn progress() {
    let (began, mut last, mut then) = (Instant::now(), (0, 0), Instant::now());
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let now = (ANSWERS.load(Ordering::Relaxed), MICROS.load(Ordering::Relaxed));
        let (answers, micros) = ((now.0 - last.0) as f64, (now.1 - last.1) as f64);
        eprintln!(
            "    {:>4} s  {:>7.0} requests/s  mean {:>8.1} ms  {:>9} in all  {} wrong",
            began.elapsed().as_secs(),
            answers / then.elapsed().as_secs_f64(),
            micros / 1000.0 / answers.max(1.0),
            now.0,
            WRONG.load(Ordering::Relaxed)
        );
        (last, then) = (now, Instant::now());
    }
}

/// Times and statuses of one route, or of all together.
#[derive(Default)]
struct Row {
    times: BTreeMap<u64, usize>,
    slowest: u64,
    wrong: usize,
    statuses: BTreeMap<u16, usize>,
}

impl Row {
    fn count(&self) -> usize {
        self.times.values().sum()
    }

    /// In milliseconds; the bucket's lower edge.
    #[allow(clippy::cast_precision_loss, reason = "counts of requests")]
    fn quantile(&self, q: f64) -> f64 {
        let rank = self.count() as f64 * q;
        let mut seen = 0;
        for (micros, count) in &self.times {
            seen += count;
            if seen as f64 >= rank {
                return *micros as f64 / 1000.0;
            }
        }
        0.0
    }
}

/// Prints the table. Answers whether all ended as they should.
///
/// # Errors
/// When the summary cannot be written.
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
            row.wrong += request.fail_count;
            for (status, count) in &request.status_code_counts {
                *row.statuses.entry(*status).or_default() += count;
            }
        }
    }
    let seconds = metrics.duration.max(1) as f64;
    println!("| request | per second | p50 ms | p95 ms | p99 ms | max ms | wrong | statuses |");
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
            row.wrong,
        );
    }
    let (all, wrong) = (rows.get("all"), WRONG.load(Ordering::Relaxed));
    if let (Ok(path), Some(all)) = (std::env::var("APP_LOAD_SUMMARY"), all) {
        let text = format!(
            "requests={}\nrate={:.1}\np50={:.1}\np95={:.1}\np99={:.1}\nwrong={wrong}\n",
            ANSWERS.load(Ordering::Relaxed),
            all.count() as f64 / seconds,
            all.quantile(0.5),
            all.quantile(0.95),
            all.quantile(0.99),
        );
        std::fs::write(path, text)?;
    }
    if wrong > 0 {
        let statuses = STATUSES.lock().unwrap_or_else(PoisonError::into_inner);
        eprintln!("{wrong} requests did not end as they should; statuses since the start (0: no answer): {statuses:?}");
    }
    Ok(wrong == 0)
}
