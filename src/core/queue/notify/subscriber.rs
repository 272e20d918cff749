//! Listening: one blocking pop at a time on a connection of its own, with a time limit outside the client's.

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

/// How long one pop blocks in Redis.
const BLOCK: Duration = Duration::from_secs(2);
/// A server that hangs holds a pop for ever: past this the connection is given up.
const PATIENCE: Duration = Duration::from_secs(3);

pub struct Subscriber {
    client: Client,
    lists: Vec<String>,
}

/// What a pop brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// Messages: there are jobs to claim.
    Jobs,
    Timeout,
    /// Redis does not answer; poll more often.
    Disconnected,
}

impl Subscriber {
    /// # Errors
    /// When the client cannot be built; not when Redis is away.
    pub fn new(config: &RedisConfig, cluster: ClusterId, host: HostId) -> Result<Self, RedisError> {
        let lists = [Channel::Host(host), Channel::Any].map(|channel| channel.list(cluster)).to_vec();
        Ok(Self { client: redis::waiting_client(config)?, lists })
    }

    /// Waits for messages and removes at most `most` of one list, this host's own first.
    pub async fn recv(&self, most: usize) -> Wakeup {
        let asked = Instant::now();
        let most = i64::try_from(most.max(1)).unwrap_or(i64::MAX);
        let pop = self.client.blmpop::<Option<HashMap<String, Vec<String>>>, _>(
            BLOCK.as_secs_f64(),
            self.lists.clone(),
            LMoveDirection::Left,
            Some(most),
        );
        match tokio::time::timeout(PATIENCE, pop).await {
            Ok(Ok(None)) => Wakeup::Timeout,
            // Which jobs they name does not matter: they may be taken by now, and the claim decides.
            Ok(Ok(Some(_))) => Wakeup::Jobs,
            // fred turns the null of a pop that brought nothing into this error; that server answered, and in time.
            Ok(Err(error)) if *error.kind() == ErrorKind::Timeout && asked.elapsed() >= BLOCK / 2 => Wakeup::Timeout,
            Ok(Err(error)) => {
                tracing::debug!(%error, "redis does not answer");
                Wakeup::Disconnected
            }
            Err(_) => {
                tracing::debug!("redis hangs; reconnecting");
                // In the background: it may wait for the old connection.
                let client = self.client.clone();
                tokio::spawn(async move { client.force_reconnection().await });
                Wakeup::Disconnected
            }
        }
    }
}
