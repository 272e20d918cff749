//! Logs on standard error, and metrics for Prometheus.
//!
//! Neither ever contains an API key, a body or an environment value. Recording never blocks: log lines that cannot be written
//! fast enough are dropped and counted (`logs`), and metrics are rendered when they are scraped (`recorder`).

mod logs;
pub mod metrics;
mod recorder;

pub use logs::{FlushOnDrop, exit, flush, last_line, log};
pub use recorder::{Metrics, metrics, upkeep};
