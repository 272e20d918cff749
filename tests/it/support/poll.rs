//! Polls for a condition that cannot be waited for. The wait is bounded, and the panic says which condition was not
//! met.

use std::time::{Duration, Instant};

/// Polls every 20 ms until `probe` returns `Some`; panics with `what` after `within`.
pub async fn poll_until<T>(what: &str, within: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = probe().await {
            return answer;
        }
        assert!(started.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
