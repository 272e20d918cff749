//! Logs to standard error; metrics for Prometheus. Neither ever holds a key, a body or an environment value.

mod logs;
mod metrics;

pub use logs::{FlushOnDrop, exit, flush, last_line, log};
pub use metrics::{metrics, upkeep};
