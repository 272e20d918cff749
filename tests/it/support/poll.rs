//! Waiting for something that can only be asked for: bounded, and it says what was missing.

use std::time::{Duration, Instant};

/// Asks until the answer is `Some`; panics with `what` after `within`.
pub async fn poll_until<T>(what: &str, within: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
