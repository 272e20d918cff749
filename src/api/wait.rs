//! `?wait=…&timeout=…`: holds an answer back until it is worth sending. Costs no thread and no connection.

use std::time::Duration;

use tokio::time::Instant;

use crate::http::query::Query;

const DEFAULT: Duration = Duration::from_secs(30);
const MAX: Duration = Duration::from_secs(60);

/// Takes `timeout` (seconds, cut at 60) and answers when the wait is over.
pub fn take_deadline(query: &mut Query) -> Instant {
    let seconds = query.take_parsed("timeout", "must be a number of seconds from 0", |text| {
        text.parse::<f64>().ok().filter(|seconds| seconds.is_finite() && *seconds >= 0.0)
    });
    let timeout = seconds.map_or(DEFAULT, |seconds| Duration::from_secs_f64(seconds.min(MAX.as_secs_f64())));
    Instant::now() + timeout
}
