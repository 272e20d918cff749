//! Redis clients: every time-out set, reconnecting for ever. Redis only rings bells; nothing waits for it for long.

use std::time::Duration;

use fred::{
    clients::Client,
    prelude::{ClientLike, ReconnectPolicy, TcpConfig},
    types::Builder,
};
use thiserror::Error;
use thread_local::ThreadLocal;

use crate::config::redis::RedisConfig;

#[derive(Debug, Error)]
pub enum RedisError {
    #[error("redis: {0}")]
    Client(#[from] fred::error::Error),
    #[error("redis: no answer in time")]
    Late,
    #[error("REDIS_URL: the server is Redis {0}; 7.0 or later is needed (BLMPOP)")]
    TooOld(String),
    #[error(
        "REDIS_URL: the server's maxmemory-policy is {0}; it must be noeviction, or entries vanish: redis-cli config set \
         maxmemory-policy noeviction"
    )]
    Evicts(String),
}

/// A client that connects in the background. `command_timeout`: for each command, except where zero.
///
/// # Errors
/// When the configuration cannot be used.
pub fn client(config: &RedisConfig, command_timeout: Duration) -> Result<Client, RedisError> {
    let client = builder(config, command_timeout).build()?;
    // The task ends with the client; connecting is retried inside.
    client.connect();
    Ok(client)
}

/// A client for each thread that asks. An HTTP worker is a runtime of one thread: its client's task is on the same one,
/// so that no command and no answer wakes another thread, and commands of one turn leave in one write.
pub struct PerThread {
    config: RedisConfig,
    patience: Duration,
    clients: ThreadLocal<Client>,
}

impl PerThread {
    /// `patience`: for each question.
    pub fn new(config: &RedisConfig, patience: Duration) -> Self {
        Self { config: config.clone(), patience, clients: ThreadLocal::new() }
    }

    /// Asks with this thread's client; it connects in the background when it is new.
    ///
    /// # Errors
    /// As for `client`; what Redis answers; `Late` when it does not in time.
    pub async fn ask<'a, T, F>(&'a self, question: impl FnOnce(&'a Client) -> F) -> Result<T, RedisError>
    where
        F: Future<Output = Result<T, fred::error::Error>>,
    {
        // Its own time-out, which frees what it keeps of the command, must not come first: see below.
        let client = self.clients.get_or_try(|| client(&self.config, self.patience * 4))?;
        let too_late = async {
            tokio::time::sleep(self.patience).await;
            // A thread that had no processor for that long finds the answer and the end of its patience together.
            tokio::task::yield_now().await;
        };
        tokio::select! {
            biased;
            answer = question(client) => Ok(answer?),
            () = too_late => Err(RedisError::Late),
        }
    }
}

fn builder(config: &RedisConfig, command_timeout: Duration) -> Builder {
    // The first connection comes after the first pause, too: a short one, for somebody may be waiting.
    let mut policy = ReconnectPolicy::new_exponential(0, 5, 2000, 2);
    policy.set_jitter(10);
    let mut config = config.fred();
    // Otherwise a client whose first attempt fails never makes another.
    config.fail_fast = false;
    let mut builder = Builder::from_config(config);
    builder
        .with_performance_config(|performance| {
            performance.default_command_timeout = command_timeout;
            performance.broadcast_channel_capacity = 4096;
        })
        .with_connection_config(|connection| {
            connection.connection_timeout = Duration::from_millis(500);
            connection.internal_command_timeout = Duration::from_millis(500);
            connection.max_command_attempts = 1;
            connection.max_command_buffer_len = 10_000;
            connection.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
        })
        .set_policy(policy);
    builder
}

/// Checks what the design relies on. `Ok` also when the server does not answer: it is not needed to start.
///
/// # Errors
/// `TooOld`, `Evicts`.
pub async fn check(client: &Client) -> Result<(), RedisError> {
    let answer = tokio::time::timeout(Duration::from_secs(2), async {
        client.wait_for_connect().await?;
        let server: String = client.info(Some(fred::types::InfoKind::Server)).await?;
        let memory: String = client.info(Some(fred::types::InfoKind::Memory)).await?;
        Ok::<_, fred::error::Error>((server, memory))
    });
    let Ok(Ok((server, memory))) = answer.await else {
        tracing::warn!("redis does not answer yet; jobs are found by polling until it does");
        return Ok(());
    };
    let field = |text: &str, name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
    };
    let version = field(&server, "redis_version:");
    if version.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major < 7) {
        return Err(RedisError::TooOld(version));
    }
    match field(&memory, "maxmemory_policy:").as_str() {
        "noeviction" | "" => Ok(()),
        other => Err(RedisError::Evicts(other.to_owned())),
    }
}

/// Whether the server answers within a moment.
pub async fn answers(client: &Client) -> bool {
    let ping = async { client.ping::<String>(None).await.is_ok() };
    matches!(tokio::time::timeout(Duration::from_millis(250), ping).await, Ok(true))
}
