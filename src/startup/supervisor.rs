//! Loops that run for as long as their process: maintenance, the key cache's invalidations, statuses that clients wait for.
//!
//! None of them returns. One that does has panicked, and the process would go on without it: rescuing no job, or answering
//! every wait late. So the process ends with status 70 (`EX_SOFTWARE` of sysexits), for its supervisor to start another.

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{telemetry, worker::EXIT_STATUS};

/// Runs a loop in the background, and ends the process when it ends.
pub fn run(name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(supervise(name, tokio::spawn(task), |status| telemetry::exit(status)));
}

/// Runs a loop in the background until `stop` is cancelled, and ends the process when the loop ends before.
pub fn run_until(stop: CancellationToken, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    let running = tokio::spawn(task);
    let abort = running.abort_handle();
    tokio::spawn(async move {
        if stop.run_until_cancelled(supervise(name, running, |status| telemetry::exit(status))).await.is_none() {
            abort.abort();
        }
    });
}

async fn supervise(name: &'static str, running: JoinHandle<()>, exit: impl FnOnce(i32)) {
    match running.await {
        // The runtime is shutting down.
        Err(error) if error.is_cancelled() => {}
        ended => {
            tracing::error!(name, ?ended, "a background loop ended; this process ends");
            exit(EXIT_STATUS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn loop_that_panics_or_returns_ends_the_process_with_70() {
        for ended in [tokio::spawn(async { panic!("a bug") }), tokio::spawn(async {})] {
            let mut status = None;

            supervise("test", ended, |code| status = Some(code)).await;

            assert_eq!(status, Some(70));
        }
    }

    #[tokio::test]
    async fn loop_that_a_shutdown_cancels_does_not_end_the_process() {
        let running = tokio::spawn(std::future::pending());
        running.abort();
        let mut status = None;

        supervise("test", running, |code| status = Some(code)).await;

        assert_eq!(status, None);
    }
}
