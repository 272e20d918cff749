//! Sending wake-ups: one `RPUSH` per job within 100 ms. A failure is counted and not returned, since the workers' poll
//! finds the job.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use fred::{clients::Client, interfaces::ListInterface};
use parking_lot::Mutex;

use super::{Channel, ProvisionJob};
use crate::{
    config::redis::RedisConfig,
    core::{
        id::{ClusterId, JobId},
        queue::job::JobKind,
        redis::{self, RedisError},
    },
};

/// How long a request waits for Redis at most.
const NOTIFY_TIMEOUT: Duration = Duration::from_millis(100);
/// Stop pushing once the list holds this many entries: workers with a backlog claim straight from Postgres and do not
/// read the list.
const LIST_LENGTH_MAX: i64 = 64;
/// How long the last known length of a list is used instead of the present one.
const LIST_LENGTH_TTL: Duration = Duration::from_secs(1);
/// How long after a failure no push is attempted, so that the other requests do not wait for Redis.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Pushes wake-ups. Cheap to clone.
#[derive(Clone)]
pub struct Notifier {
    client: Client,
    cluster: ClusterId,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    lengths: HashMap<Channel, (i64, Instant)>,
    paused_until: Option<Instant>,
}

impl State {
    fn allows_push(&self, channel: Channel, now: Instant) -> bool {
        let is_full = self
            .lengths
            .get(&channel)
            .is_some_and(|(length, at)| *length >= LIST_LENGTH_MAX && now - *at < LIST_LENGTH_TTL);
        !is_full && self.paused_until.is_none_or(|until| now >= until)
    }
}

impl Notifier {
    /// Makes a notifier, which connects in the background.
    ///
    /// # Errors
    /// When the client cannot be built; not when Redis cannot be reached.
    pub fn new(config: &RedisConfig, cluster: ClusterId) -> Result<Self, RedisError> {
        Ok(Self { client: redis::client(config, NOTIFY_TIMEOUT)?, cluster, state: Arc::default() })
    }

    /// Returns the client, for health checks.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Wakes a worker of the channel up for a job that was queued.
    pub async fn notify(&self, channel: Channel, job: JobId, kind: JobKind) {
        let now = Instant::now();
        if !self.state.lock().allows_push(channel, now) {
            metrics::counter!("queue_notifications_total", "outcome" => "skipped").increment(1);
            return;
        }
        let message = ProvisionJob::new(job, kind).encode();
        let push = self.client.rpush::<i64, _, _>(channel.redis_key(self.cluster), message);
        let outcome = match tokio::time::timeout(NOTIFY_TIMEOUT, push).await {
            Ok(Ok(length)) => {
                self.state.lock().lengths.insert(channel, (length, now));
                "sent"
            }
            failed => {
                self.state.lock().paused_until = Some(Instant::now() + RETRY_INTERVAL);
                tracing::debug!(?failed, %job, "redis did not accept the wake-up; a worker's poll will find the job");
                "failed"
            }
        };
        metrics::counter!("queue_notifications_total", "outcome" => outcome).increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::HostId;

    #[test]
    fn push_is_skipped_while_list_is_known_to_be_full() {
        let now = Instant::now();
        let with_length = |length| State { lengths: [(Channel::Any, (length, now))].into(), paused_until: None };

        assert!(with_length(LIST_LENGTH_MAX - 1).allows_push(Channel::Any, now));
        assert!(!with_length(LIST_LENGTH_MAX).allows_push(Channel::Any, now));
        assert!(with_length(LIST_LENGTH_MAX).allows_push(Channel::Any, now + LIST_LENGTH_TTL));
        assert!(with_length(LIST_LENGTH_MAX).allows_push(Channel::Host(HostId::new()), now));
    }

    #[test]
    fn push_is_skipped_for_a_while_after_a_failure() {
        let until = Instant::now() + RETRY_INTERVAL;
        let state = State { lengths: HashMap::new(), paused_until: Some(until) };

        assert!(!state.allows_push(Channel::Any, until - Duration::from_millis(1)));
        assert!(state.allows_push(Channel::Any, until));
    }
}
