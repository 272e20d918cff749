//! Logs to standard error; metrics for Prometheus. Neither ever holds a key, a body or an environment value.

mod logs;
pub mod metrics;
mod recorder;

pub use logs::{FlushOnDrop, exit, flush, last_line, log};
pub use recorder::{Metrics, metrics, upkeep};
