//! Ringing: one push, best effort, within 100 ms. Failure is harmless, so it is counted and not reported.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use fred::{clients::Client, interfaces::ListInterface};

use super::{Channel, ProvisionJob};
use crate::{
    config::redis::RedisConfig,
    core::{
        id::{ClusterId, JobId},
        queue::job::JobKind,
        redis::{self, RedisError},
    },
};

/// How long a caller waits for Redis at most.
const BUDGET: Duration = Duration::from_millis(100);
/// A list this long rings loud enough: workers that have a backlog do not read it. What was known of a length is
/// forgotten after a moment.
const LOUD_ENOUGH: i64 = 64;
const MEMORY: Duration = Duration::from_secs(1);
/// After a failure nobody waits for Redis for this long.
const BREAK: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct Notifier {
    client: Client,
    cluster: ClusterId,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    lengths: HashMap<Channel, (i64, Instant)>,
    broken_until: Option<Instant>,
}

impl Notifier {
    /// # Errors
    /// When the client cannot be built; not when Redis is away.
    pub fn new(config: &RedisConfig, cluster: ClusterId) -> Result<Self, RedisError> {
        Ok(Self { client: redis::client(config, BUDGET)?, cluster, state: Arc::default() })
    }

    /// The client, for health checks.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Tells that a job waits.
    pub async fn notify(&self, channel: Channel, job: JobId, kind: JobKind) {
        let now = Instant::now();
        let skip = {
            let state = self.state();
            let loud = state.lengths.get(&channel).is_some_and(|(n, at)| *n >= LOUD_ENOUGH && now - *at < MEMORY);
            loud || state.broken_until.is_some_and(|until| now < until)
        };
        if skip {
            metrics::counter!("queue_notifications_total", "outcome" => "skipped").increment(1);
            return;
        }
        let push = self.client.rpush::<i64, _, _>(channel.list(self.cluster), ProvisionJob::new(job, kind).encode());
        let outcome = match tokio::time::timeout(BUDGET, push).await {
            Ok(Ok(length)) => {
                self.state().lengths.insert(channel, (length, now));
                "rung"
            }
            failed => {
                self.state().broken_until = Some(Instant::now() + BREAK);
                tracing::debug!(?failed, "redis did not take the bell; a poll will find the job");
                "failed"
            }
        };
        metrics::counter!("queue_notifications_total", "outcome" => outcome).increment(1);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
