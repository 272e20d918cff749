//! Delays the answers of `GET /instances/{id}?wait=…` and `GET /jobs/{id}?wait=true` until a status changes.
//!
//! A request that has read its row and finds nothing to answer yet subscribes with `StatusWatch::wait`, sleeps until
//! the status is another one, and reads the row again. It polls nothing itself: one loop per process
//! (`StatusWatch::run`) reads the statuses of all rows that requests wait for, in one statement every `POLL_INTERVAL`,
//! so that Postgres does the same work for one waiting request as for a thousand. While no request waits, it reads
//! nothing.
//!
//! No change is missed: the subscription starts from the status that the request has read, and a request that knows
//! another status than the watch is woken at once. When a poll fails, the next one follows after the interval. A
//! request ends its wait by itself when its time is over.

use std::{collections::HashMap, hash::Hash, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};

use crate::{core::db::DbError, http::query::Query};

/// How long a wait lasts when the request does not say.
const DEFAULT_WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a wait may last.
const WAIT_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// How often the statuses are read while a request waits.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The statuses (`S`) of the rows that requests of this process wait for, by the rows' ids. Clones share them.
pub struct StatusWatch<Id, S> {
    rows: Arc<Mutex<HashMap<Id, watch::Sender<S>>>>,
}

impl<Id, S> Clone for StatusWatch<Id, S> {
    fn clone(&self) -> Self {
        Self { rows: self.rows.clone() }
    }
}

impl<Id, S> Default for StatusWatch<Id, S> {
    fn default() -> Self {
        Self { rows: Arc::default() }
    }
}

/// One request's subscription; it ends when this is dropped.
pub struct Waiter<S>(watch::Receiver<S>);

impl<S> Waiter<S> {
    /// Returns when the status is another one than before. Never returns if the row or the watch is gone.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl<Id: Copy + Eq + Hash, S: Clone + PartialEq> StatusWatch<Id, S> {
    /// Subscribes to a row. `status`: the one that the request has read.
    pub fn wait(&self, id: Id, status: S) -> Waiter<S> {
        let mut rows = self.rows.lock();
        let sender = rows.entry(id).or_insert_with(|| watch::Sender::new(status.clone()));
        let mut receiver = sender.subscribe();
        // An earlier request may have subscribed with an older or newer status: then this one has to read the row
        // again.
        if *receiver.borrow_and_update() != status {
            receiver.mark_changed();
        }
        Waiter(receiver)
    }

    /// Polls the statuses of all rows that requests wait for. Never returns. `statuses`: reads those of the rows with
    /// these ids that exist.
    pub async fn run<F>(&self, statuses: impl Fn(Vec<Id>) -> F)
    where
        F: Future<Output = Result<Vec<(Id, S)>, DbError>>,
    {
        let mut tick = tokio::time::interval(POLL_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let ids = self.awaited_rows();
            if ids.is_empty() {
                continue;
            }
            match statuses(ids).await {
                Ok(found) => self.publish(found),
                Err(error) => {
                    tracing::debug!(%error, "could not read the statuses that requests wait for, trying again")
                }
            }
        }
    }

    /// Removes the rows that no request waits for any more, and returns the others.
    fn awaited_rows(&self) -> Vec<Id> {
        let mut rows = self.rows.lock();
        rows.retain(|_, sender| sender.receiver_count() > 0);
        rows.keys().copied().collect()
    }

    /// Wakes the requests that wait for a row whose status differs from the known one.
    fn publish(&self, found: Vec<(Id, S)>) {
        let rows = self.rows.lock();
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

/// Takes the parameter `timeout` (seconds, at most 60, 30 when it is absent) and returns when the wait is over.
pub fn take_deadline(query: &mut Query) -> Instant {
    let seconds = query.take_parsed("timeout", "must be a number of seconds, 0 or more", |text| {
        text.parse::<f64>().ok().filter(|seconds| seconds.is_finite() && *seconds >= 0.0)
    });
    let timeout = seconds
        .map_or(DEFAULT_WAIT_TIMEOUT, |seconds| Duration::from_secs_f64(seconds.min(WAIT_TIMEOUT_MAX.as_secs_f64())));
    Instant::now() + timeout
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{id::InstanceId, instances::Status};

    #[tokio::test]
    async fn waiters_are_woken_by_a_change_and_removed_when_they_end() {
        let (watch, id) = (StatusWatch::<InstanceId, Status>::default(), InstanceId::new());
        let mut first = watch.wait(id, Status::Pending);

        watch.publish(vec![(id, Status::Running)]);
        first.changed().await;
        assert_eq!(watch.awaited_rows(), [id]);

        drop(first);
        assert!(watch.awaited_rows().is_empty());
    }

    #[tokio::test]
    async fn waiter_that_knows_an_older_status_is_woken_at_once() {
        let (watch, id) = (StatusWatch::<InstanceId, Status>::default(), InstanceId::new());
        let _other = watch.wait(id, Status::Running);

        watch.wait(id, Status::Pending).changed().await;
    }
}
