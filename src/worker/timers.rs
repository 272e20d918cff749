//! Timers for jobs that this worker postponed: the dispatcher sleeps until the earliest, not for a whole poll interval.
//!
//! They exist in this process only. A timer that is lost with it delays a job by one poll interval at most.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Added to each timer: Postgres computed the job's due time a moment before the timer was set, and a claim that comes
/// too early would find nothing.
const CLOCK_MARGIN_INTERVAL: Duration = Duration::from_millis(10);

/// The times at which jobs become due.
#[derive(Default)]
pub struct Timers {
    due: Mutex<BTreeSet<Instant>>,
    changed: Notify,
}

impl Timers {
    /// Sets a timer for a job that becomes due after `pause`.
    pub fn wake_after(&self, pause: Duration) {
        self.due.lock().insert(Instant::now() + pause + CLOCK_MARGIN_INTERVAL);
        self.changed.notify_one();
    }

    /// Waits until the earliest timer expires, and removes all that have expired.
    pub async fn next_due(&self) {
        loop {
            let changed = self.changed.notified();
            let first = self.due.lock().first().copied();
            match first {
                None => changed.await,
                Some(at) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(at.into()) => {
                        self.due.lock().retain(|due| *due > at);
                        return;
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn earliest_timer_expires_first_even_if_it_was_set_last() {
        let timers = std::sync::Arc::new(Timers::default());
        timers.wake_after(Duration::from_secs(3600));
        let waiting = timers.clone();
        let sleeper = tokio::spawn(async move { waiting.next_due().await });
        tokio::task::yield_now().await;

        timers.wake_after(Duration::ZERO);

        sleeper.await.expect("the timer has expired");
        assert_eq!(timers.due.lock().len(), 1);
    }
}
