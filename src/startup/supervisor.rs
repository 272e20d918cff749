//! The supervisor of the API's and the worker's tasks: none of them may end unnoticed.
//!
//! A background loop runs for as long as its part of the process: maintenance, heartbeats, the key cache's invalidations,
//! statuses that clients wait for. One that returns has a bug, and one that panics is gone; either way the process would
//! go on without it, rescue no job, or answer every wait late. So the process ends with status 70, and its process
//! manager starts another. A part that is stopped stops its loops first: that is the one way for them to end.

use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{shutdown::FAILED_PART_STATUS, telemetry};

/// A background loop that runs; dropping this leaves it running.
pub struct Supervised {
    stop: CancellationToken,
    supervisor: JoinHandle<()>,
}

impl Supervised {
    /// Aborts the loop and waits until it has ended.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.supervisor.await {
            tracing::error!(%error, "a supervisor panicked");
        }
    }
}

/// Runs a loop in the background, and ends the process when the loop ends before it is stopped.
pub fn run(name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> Supervised {
    let stop = CancellationToken::new();
    let supervisor = tokio::spawn(supervise(name, tokio::spawn(task), stop.clone(), |status| telemetry::exit(status)));
    Supervised { stop, supervisor }
}

/// Waits for a task that ends by itself, and returns what it returned. Ends the process when the task panicked.
pub async fn join<T>(name: &'static str, task: JoinHandle<T>) -> T {
    match task.await {
        Ok(result) => result,
        Err(error) => end(name, &error),
    }
}

async fn supervise(name: &'static str, mut task: JoinHandle<()>, stop: CancellationToken, exit: impl FnOnce(i32)) {
    match stop.run_until_cancelled(&mut task).await {
        None => {
            task.abort();
            // A panic while it was being stopped has been logged by the panic hook.
            let _ = task.await;
        }
        // The runtime is shutting down.
        Some(Err(error)) if error.is_cancelled() => {}
        Some(ended) => {
            tracing::error!(name, ?ended, "a background loop ended; this process ends");
            exit(FAILED_PART_STATUS);
        }
    }
}

fn end(name: &'static str, error: &JoinError) -> ! {
    tracing::error!(name, %error, "a part of this process panicked; this process ends");
    telemetry::exit(FAILED_PART_STATUS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn loop_that_panics_or_returns_ends_the_process_with_70() {
        for ended in [tokio::spawn(async { panic!("a bug") }), tokio::spawn(async {})] {
            let mut status = None;

            supervise("test", ended, CancellationToken::new(), |code| status = Some(code)).await;

            assert_eq!(status, Some(70));
        }
    }

    #[tokio::test]
    async fn loop_that_the_runtime_cancels_does_not_end_the_process() {
        let running = tokio::spawn(std::future::pending());
        running.abort();
        let mut status = None;

        supervise("test", running, CancellationToken::new(), |code| status = Some(code)).await;

        assert_eq!(status, None);
    }

    #[tokio::test]
    async fn loop_that_is_stopped_has_ended_and_does_not_end_the_process() {
        let held = std::sync::Arc::new(());
        let by_loop = held.clone();
        let running = run("test", async move {
            std::future::pending::<()>().await;
            drop(by_loop);
        });

        running.stop().await;

        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }
}
