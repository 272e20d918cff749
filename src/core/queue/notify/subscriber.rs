//! Receiving wake-ups: one blocking pop at a time, on a connection of its own, with a time-out outside the client.
//!
//! A blocking command stalls every other command on its connection. The client's own time-outs do not apply to it, and
//! a server that hangs would hold it without end, so `recv` has a time-out of its own and then reconnects.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use fred::{
    clients::Client,
    error::ErrorKind,
    interfaces::{ClientLike, ListInterface},
    types::lists::LMoveDirection,
};

use super::Channel;
use crate::{
    config::redis::RedisConfig,
    core::{
        id::{ClusterId, HostId},
        redis::{self, RedisError},
    },
};

/// How long Redis lets one pop wait.
const POP_TIMEOUT: Duration = Duration::from_secs(2);
/// A pop without an answer for this long means that the server hangs: the connection is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Waits on the lists of one host.
pub struct Subscriber {
    client: Client,
    lists: Vec<String>,
}

/// Why `recv` returned.
#[derive(Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// There were messages: claim jobs.
    Jobs,
    /// There was no message within two seconds.
    Timeout,
    /// Redis does not answer: poll Postgres more often until it does.
    Disconnected,
}

impl Subscriber {
    /// Makes a subscriber, which connects in the background.
    ///
    /// # Errors
    /// When the client cannot be built; not when Redis cannot be reached.
    pub fn new(config: &RedisConfig, cluster: ClusterId, host: HostId) -> Result<Self, RedisError> {
        let lists = [Channel::Host(host), Channel::Any].map(|channel| channel.redis_key(cluster)).to_vec();
        Ok(Self { client: redis::waiting_client(config)?, lists })
    }

    /// Waits for messages and removes at most `limit` from one list, this host's own first.
    pub async fn recv(&self, limit: usize) -> Wakeup {
        let sent_at = Instant::now();
        let limit = i64::try_from(limit.max(1)).unwrap_or(i64::MAX);
        let pop = self.client.blmpop::<Option<HashMap<String, Vec<String>>>, _>(
            POP_TIMEOUT.as_secs_f64(),
            self.lists.clone(),
            LMoveDirection::Left,
            Some(limit),
        );
        match tokio::time::timeout(ANSWER_TIMEOUT, pop).await {
            Ok(Ok(None)) => Wakeup::Timeout,
            // The ids in the messages are not used: other workers may have these jobs by now, and the claim decides.
            Ok(Ok(Some(_))) => Wakeup::Jobs,
            // fred turns the null reply of a pop without messages into this error: the server answered in time.
            Ok(Err(error)) if *error.kind() == ErrorKind::Timeout && sent_at.elapsed() >= POP_TIMEOUT / 2 => {
                Wakeup::Timeout
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "redis does not answer; polling postgres for jobs");
                Wakeup::Disconnected
            }
            Err(_) => {
                tracing::debug!("redis hangs; reconnecting, and polling postgres for jobs");
                // In the background, since it may wait for the old connection.
                let client = self.client.clone();
                tokio::spawn(async move { client.force_reconnection().await });
                Wakeup::Disconnected
            }
        }
    }
}
