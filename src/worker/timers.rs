//! When jobs that this worker put off become due: the dispatcher sleeps until the earliest, not for a whole poll period.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

#[derive(Default)]
pub struct Wakeups {
    due: Mutex<BTreeSet<Instant>>,
    changed: Notify,
}

impl Wakeups {
    /// A job becomes due after this.
    pub fn after(&self, pause: Duration) {
        // Postgres wrote its time a moment before we count from now; a little late finds it due for sure.
        self.due().insert(Instant::now() + pause + Duration::from_millis(10));
        self.changed.notify_one();
    }

    /// Returns when something has become due.
    pub async fn next(&self) {
        loop {
            let changed = self.changed.notified();
            let first = self.due().first().copied();
            match first {
                None => changed.await,
                Some(at) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(at.into()) => {
                        self.due().retain(|due| *due > at);
                        return;
                    }
                },
            }
        }
    }

    fn due(&self) -> std::sync::MutexGuard<'_, BTreeSet<Instant>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_earliest_wakes_first_even_if_it_came_last() {
        let wakeups = std::sync::Arc::new(Wakeups::default());
        wakeups.after(Duration::from_secs(3600));
        let waiting = wakeups.clone();
        let sleeper = tokio::spawn(async move { waiting.next().await });
        tokio::task::yield_now().await;
        wakeups.after(Duration::ZERO);
        sleeper.await.expect("woken");
        assert_eq!(wakeups.due().len(), 1);
    }
}
