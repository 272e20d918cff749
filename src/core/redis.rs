//! Redis clients: every time-out set, reconnecting for ever. Redis only rings bells; nothing waits for it for long.

use std::time::Duration;

use fred::{
    clients::{Client, Pool},
    prelude::{ClientLike, ReconnectPolicy, TcpConfig},
    types::Builder,
};
use thiserror::Error;

use crate::config::redis::RedisConfig;

#[derive(Debug, Error)]
pub enum RedisError {
    #[error("redis: {0}")]
    Client(#[from] fred::error::Error),
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

/// Several connections that share the work.
///
/// # Errors
/// As for `client`.
pub fn pool(config: &RedisConfig, command_timeout: Duration, size: usize) -> Result<Pool, RedisError> {
    let pool = builder(config, command_timeout).build_pool(size)?;
    pool.connect();
    Ok(pool)
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
