//! The reader of the invalidation log: one poll of Redis every 50 ms, whose reply carries all entries since the last
//! one.
//!
//! The reply also registers, in the same atomic script, how far this process has read; a revocation waits for every
//! process that is registered and lags. Polling replaces a subscription for three reasons: entries and registration
//! cannot arrive in the wrong order, a reconnection resumes at the last entry, and a process that was suspended finds
//! its fence expired before it reads old entries.
//!
//! When a poll fails, the log has a gap or Redis has lost its data, the reader flushes L1 and starts over at the log's
//! end.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{
    l1::L1,
    redis_tier::{INVALIDATIONS_MAX, InvalidationBatch, LogId, RedisTier},
};

const POLL_INTERVAL: Duration = Duration::from_millis(50);
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(5);

/// The position in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct InvalidationReader {
    last: Option<LogId>,
    epoch: Option<String>,
}

/// When to poll next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextPoll {
    /// There may be more entries, or a revocation waits for this process to register what it has applied.
    AtOnce,
    /// After the interval.
    AfterInterval,
}

impl InvalidationReader {
    /// Returns the last applied entry; `None` before the first poll and after a failed one.
    pub fn last(&self) -> Option<LogId> {
        self.last
    }

    /// Applies the reply to a poll that was sent at `sent_at` to `l1`.
    pub fn apply(&mut self, batch: &InvalidationBatch, l1: &L1, sent_at: u64) -> NextPoll {
        let known = (self.epoch.as_deref() == Some(&batch.epoch)).then_some(self.last).flatten();
        let Some(last) = known else {
            // The first poll, or a Redis that has lost its data.
            return self.start_over(batch, l1);
        };
        // A log that was empty has an oldest entry now; only more entries than one reply holds can hide a gap.
        let has_gap = batch.oldest > last && (last != LogId::default() || batch.entries.len() == INVALIDATIONS_MAX);
        let went_back = batch.newest < last;
        if has_gap || went_back {
            return self.start_over(batch, l1);
        }
        for (_, name) in &batch.entries {
            l1.invalidate(name);
        }
        let newest = batch.entries.last().map_or(last, |(id, _)| *id);
        self.last = Some(newest);
        if batch.entries.len() < INVALIDATIONS_MAX {
            l1.extend_fence(sent_at);
        }
        if batch.entries.is_empty() { NextPoll::AfterInterval } else { NextPoll::AtOnce }
    }

    fn start_over(&mut self, batch: &InvalidationBatch, l1: &L1) -> NextPoll {
        l1.flush();
        self.last = Some(batch.newest);
        self.epoch = Some(batch.epoch.clone());
        NextPoll::AtOnce
    }

    /// Flushes `l1` because a poll failed; the next successful one starts over.
    pub fn disconnected(&mut self, l1: &L1) {
        *self = Self::default();
        l1.flush();
    }
}

/// Polls the log until the task is cancelled. `process`: the id to register, so that revocations wait for this process;
/// `None` when it keeps no keys. `clock`: the monotonic milliseconds that `l1` is read with.
pub async fn run(tier: &RedisTier, l1: &L1, process: Option<&str>, clock: impl Fn() -> u64) {
    let mut reader = InvalidationReader::default();
    loop {
        let started = Instant::now();
        let sent_at = clock();
        let new_epoch = Uuid::new_v4().simple().to_string();
        let next = match tier.poll_invalidations(reader.last(), process, &new_epoch).await {
            Ok(batch) => reader.apply(&batch, l1, sent_at),
            Err(error) => {
                if reader != InvalidationReader::default() {
                    tracing::warn!(%error, "cannot poll the invalidation log in redis; not using the local key cache");
                }
                reader.disconnected(l1);
                NextPoll::AfterInterval
            }
        };
        if next == NextPoll::AfterInterval {
            tokio::time::sleep(POLL_INTERVAL.saturating_sub(started.elapsed()).max(POLL_INTERVAL_MIN)).await;
        }
    }
}
