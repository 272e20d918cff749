//! Waiting for a status to change: one question to Postgres for all who wait in this process, not one each.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use uuid::Uuid;

use crate::{core::db::DbError, http::query::Query};

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// How often Postgres is asked while somebody waits.
const PERIOD: Duration = Duration::from_millis(100);

/// Tells waiters when the status of a row is another one.
#[derive(Clone, Default)]
pub struct Watch {
    rows: Arc<Mutex<HashMap<Uuid, watch::Sender<String>>>>,
}

/// One who waits; stops by being dropped.
pub struct Waiter(watch::Receiver<String>);

impl Waiter {
    /// Returns when the status differs from the one known before. Never, if the row or the watch is gone.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Watch {
    /// Waits for a row whose status is known to be `status`.
    pub fn wait(&self, id: Uuid, status: &str) -> Waiter {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = rows.entry(id).or_insert_with(|| watch::Sender::new(status.to_owned()));
        let mut receiver = sender.subscribe();
        // Another waiter may have seen an older or newer status: then ask again at once.
        if *receiver.borrow_and_update() != status {
            receiver.mark_changed();
        }
        Waiter(receiver)
    }

    /// Asks for all rows that are waited for, for ever. `statuses`: the present status of many.
    pub async fn run<F>(&self, statuses: impl Fn(Vec<Uuid>) -> F)
    where
        F: Future<Output = Result<Vec<(Uuid, String)>, DbError>>,
    {
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let ids = self.waited_for();
            if ids.is_empty() {
                continue;
            }
            match statuses(ids).await {
                Ok(found) => self.tell(found),
                Err(error) => tracing::debug!(%error, "could not ask for statuses; trying again"),
            }
        }
    }

    fn waited_for(&self) -> Vec<Uuid> {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.retain(|_, sender| sender.receiver_count() > 0);
        rows.keys().copied().collect()
    }

    fn tell(&self, found: Vec<(Uuid, String)>) {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, status) in found {
            if let Some(sender) = rows.get(&id) {
                sender.send_if_modified(|known| {
                    let differs = *known != status;
                    *known = status;
                    differs
                });
            }
        }
    }
}

/// Takes `timeout` (seconds, cut at 60) and answers when the wait is over.
pub fn take_deadline(query: &mut Query) -> tokio::time::Instant {
    let seconds = query.take_parsed("timeout", "must be a number of seconds from 0", |text| {
        text.parse::<f64>().ok().filter(|seconds| seconds.is_finite() && *seconds >= 0.0)
    });
    let timeout =
        seconds.map_or(TIMEOUT_DEFAULT, |seconds| Duration::from_secs_f64(seconds.min(TIMEOUT_MAX.as_secs_f64())));
    tokio::time::Instant::now() + timeout
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiters_are_told_of_a_change_and_forgotten_when_they_leave() {
        let (watch, id) = (Watch::default(), Uuid::now_v7());
        let mut first = watch.wait(id, "pending");
        watch.tell(vec![(id, "running".into())]);
        first.changed().await;
        // Knows an older status than the watch does: told at once.
        watch.wait(id, "pending").changed().await;
        assert_eq!(watch.waited_for(), [id]);
        drop(first);
        assert!(watch.waited_for().is_empty());
    }
}
