//! Redis clients: every time-out set, reconnecting for ever. Whatever Redis is asked, nobody waits for it for long.

use std::time::Duration;

use fred::{
    clients::Client,
    prelude::{ClientLike, EventInterface, ReconnectPolicy, TcpConfig},
    types::{Builder, InfoKind, config::UnresponsiveConfig},
};
use socket2_05::TcpKeepalive;
use thiserror::Error;
use thread_local::ThreadLocal;

use crate::config::redis::RedisConfig;

/// How long a connection may owe an answer before another one is made.
const DEAD: Duration = Duration::from_secs(1);

#[derive(Debug, Error)]
pub enum RedisError {
    #[error("{0}")]
    Client(#[from] fred::error::Error),
    #[error("no answer in time")]
    Late,
    #[error("REDIS_URL: the server is Redis {0}; 7.0 or later is needed (BLMPOP)")]
    TooOld(String),
    #[error(
        "REDIS_URL: the server's maxmemory-policy is {0}; it must be noeviction, or entries vanish: redis-cli config set \
         maxmemory-policy noeviction"
    )]
    Evicts(String),
}

/// A client that connects in the background, and again when it is cut off. `command_timeout`: for each command, except
/// where zero.
///
/// # Errors
/// When the configuration cannot be used.
pub fn client(config: &RedisConfig, command_timeout: Duration) -> Result<Client, RedisError> {
    let mut builder = builder(config, command_timeout);
    builder.with_connection_config(|connection| {
        // Nobody else notices that a connection is dead whose server, or what is between, says nothing.
        connection.unresponsive = UnresponsiveConfig { max_timeout: Some(DEAD), interval: DEAD / 4 };
    });
    let client = builder.build()?;
    client.connect();
    Ok(client)
}

/// A client for commands that wait at the server. Who asks has to notice when they do for too long.
///
/// # Errors
/// As for `client`.
pub fn waiting_client(config: &RedisConfig) -> Result<Client, RedisError> {
    let client = builder(config, Duration::ZERO).build()?;
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

    /// When a thread begins to serve, so that its first question need not wait for a connection.
    ///
    /// # Errors
    /// As for `client`.
    pub fn open(&self) -> Result<(), RedisError> {
        match self.clients.get() {
            // Left by a thread that ended, and its task with it.
            Some(left) => drop(left.connect()),
            None => drop(self.client()?),
        }
        Ok(())
    }

    /// Asks with this thread's client.
    ///
    /// # Errors
    /// As for `client`; what Redis answers; `Late` when it does not in time.
    pub async fn ask<'a, T, F>(&'a self, question: impl FnOnce(&'a Client) -> F) -> Result<T, RedisError>
    where
        F: Future<Output = Result<T, fred::error::Error>>,
    {
        let client = self.client()?;
        let asked = async {
            // What is asked before there is a connection is sent when there is one, though nobody waits for it any more.
            if !client.is_connected() {
                client.wait_for_connect().await?;
            }
            question(client).await
        };
        let too_late = async {
            tokio::time::sleep(self.patience).await;
            // A thread that had no processor for that long finds the answer and the end of its patience together.
            tokio::task::yield_now().await;
        };
        tokio::select! {
            biased;
            answer = asked => Ok(answer?),
            () = too_late => Err(RedisError::Late),
        }
    }

    fn client(&self) -> Result<&Client, RedisError> {
        self.clients.get_or_try(|| client(&self.config, Duration::ZERO))
    }
}

fn builder(config: &RedisConfig, command_timeout: Duration) -> Builder {
    // Each client at a pace of its own, or all would come at once after an outage. The first connection comes after the
    // first pause, too: a short one, for somebody may be waiting.
    let pace = getrandom::u32().unwrap_or_default();
    let policy = ReconnectPolicy::new_exponential(0, 5 + pace % 10, 1500 + pace % 1000, 2);
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
            // Of a flow that the network forgot, the kernel hears no word.
            let keepalive = TcpKeepalive::new().with_time(DEAD * 10).with_interval(DEAD * 2);
            let (keepalive, user_timeout) = (Some(keepalive), Some(DEAD * 5));
            connection.tcp = TcpConfig { nodelay: Some(true), keepalive, user_timeout, ..TcpConfig::default() };
        })
        .set_policy(policy);
    builder
}

/// Checks what the design relies on. A server that does not answer is not needed to start: it is checked when it comes,
/// and the log says what is wrong with it.
///
/// # Errors
/// `TooOld`, `Evicts`.
pub async fn check(config: &RedisConfig) -> Result<(), RedisError> {
    let client = client(config, Duration::from_secs(1))?;
    let mut refusals = client.error_rx();
    let away = tokio::select! {
        checked = inspect(&client) => match checked {
            Err(RedisError::Client(error)) => error.to_string(),
            checked => {
                quit(&client).await;
                return checked;
            }
        },
        Ok((error, _)) = refusals.recv() => error.to_string(),
        () = tokio::time::sleep(Duration::from_secs(2)) => "no answer within 2 s".into(),
    };
    tracing::warn!(error = away, "redis does not answer yet; jobs are found by polling until it does");
    tokio::spawn(async move {
        let checked = loop {
            match inspect(&client).await {
                Err(RedisError::Client(_)) => tokio::time::sleep(Duration::from_secs(1)).await,
                checked => break checked,
            }
        };
        match checked {
            Ok(()) => tracing::info!("redis answers"),
            Err(error) => tracing::error!(%error, "the redis that came cannot be relied on"),
        }
        quit(&client).await;
    });
    Ok(())
}

async fn inspect(client: &Client) -> Result<(), RedisError> {
    client.wait_for_connect().await?;
    let server: String = client.info(Some(InfoKind::Server)).await?;
    let memory: String = client.info(Some(InfoKind::Memory)).await?;
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

async fn quit(client: &Client) {
    if let Err(error) = client.quit().await {
        tracing::debug!(%error, "redis was not told goodbye");
    }
}

/// Whether the server answers within a moment.
pub async fn answers(client: &Client) -> bool {
    let ping = async { client.ping::<String>(None).await.is_ok() };
    matches!(tokio::time::timeout(Duration::from_millis(250), ping).await, Ok(true))
}
