//! Reading the revocation log: every 50 ms one question, whose answer carries all news since the last one.
//!
//! Asking, not subscribing: entries and the proof of having asked come in one reply, a reconnection resumes where it was,
//! and a process that slept finds its fence fallen before it finds old news.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{
    l1::L1,
    redis_tier::{BATCH, InvalidationBatch, LogId, RedisTier},
};

const PERIOD: Duration = Duration::from_millis(50);

/// What has been read so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reader {
    last: Option<LogId>,
    epoch: Option<String>,
}

/// Whether to ask again at once: there is more, or somebody waits to hear that we have seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    Again,
    Later,
}

impl Reader {
    pub fn last(&self) -> Option<LogId> {
        self.last
    }

    /// Takes news from a question sent at `sent_at` into `l1`.
    pub fn take(&mut self, news: &InvalidationBatch, l1: &L1, sent_at: u64) -> Pace {
        let known = (self.epoch.as_deref() == Some(&news.epoch)).then_some(self.last).flatten();
        let Some(last) = known else {
            // The first question, or a Redis that forgot everything.
            return self.start_over(news, l1);
        };
        // A log that was empty has an oldest entry now; only more than one answer holds can hide a gap.
        let lost_some = news.oldest > last && (last != LogId::default() || news.entries.len() == BATCH);
        let went_back = news.newest < last;
        if lost_some || went_back {
            return self.start_over(news, l1);
        }
        for (_, name) in &news.entries {
            l1.invalidate(name);
        }
        let newest = news.entries.last().map_or(last, |(id, _)| *id);
        self.last = Some(newest);
        if news.entries.len() < BATCH {
            l1.grant(sent_at);
        }
        if news.entries.is_empty() { Pace::Later } else { Pace::Again }
    }

    fn start_over(&mut self, news: &InvalidationBatch, l1: &L1) -> Pace {
        l1.flush();
        self.last = Some(news.newest);
        self.epoch = Some(news.epoch.clone());
        Pace::Again
    }

    /// Nothing can be heard: start over when it can.
    pub fn disconnected(&mut self, l1: &L1) {
        *self = Self::default();
        l1.flush();
    }
}

/// Asks for ever. `registers`: the process says what it has seen, and revocations wait for it. `clock`: monotonic
/// milliseconds, the same that `l1` is asked with.
pub async fn run(tier: &RedisTier, l1: &L1, registers: bool, instance: &str, clock: impl Fn() -> u64) {
    let mut reader = Reader::default();
    loop {
        let asked_at = Instant::now();
        let sent_at = clock();
        let who = registers.then_some(instance);
        let pace = match tier.news(reader.last(), who, &Uuid::new_v4().simple().to_string()).await {
            Ok(news) => reader.take(&news, l1, sent_at),
            Err(error) => {
                if reader != Reader::default() {
                    tracing::warn!(%error, "no news of revocations; keys in this process are not used");
                }
                reader.disconnected(l1);
                Pace::Later
            }
        };
        if pace == Pace::Later {
            tokio::time::sleep(PERIOD.saturating_sub(asked_at.elapsed()).max(Duration::from_millis(5))).await;
        }
    }
}
