//! Redis clients, and the list of all keys (`keys`).
//!
//! Redis makes things faster and is never needed: a client connects in the background, reconnects without end, and every
//! command has a time-out, so that a request waits for Redis a bounded time and then goes on without it. The server is
//! checked once (`check`): a version or an eviction policy that this program cannot work with is an error at the start, or
//! in the log if the server comes later.

mod keys;

pub use keys::RedisKey;

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

/// How long a connection may owe an answer before it is replaced.
const UNRESPONSIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a connection attempt may take, and each of the client's own commands.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long `check` waits for the server before the program starts without it.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often `check` tries a server that it could not reach.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a health check waits for an answer.
const HEALTH_TIMEOUT: Duration = Duration::from_millis(250);

/// Why Redis could not be used.
#[derive(Debug, Error)]
pub enum RedisError {
    /// The client's error, or the server's.
    #[error("{0}")]
    Client(#[from] fred::error::Error),
    /// The server did not answer in time.
    #[error("no answer in time")]
    Late,
    /// The server is older than 7.0; with its version.
    #[error("REDIS_URL: the server is Redis {0}; 7.0 or later is needed (BLMPOP)")]
    TooOld(String),
    /// The server removes entries when its memory is full; with its policy.
    #[error(
        "REDIS_URL: the server's maxmemory-policy is {0}; it must be noeviction, or entries vanish: redis-cli config set \
         maxmemory-policy noeviction"
    )]
    Evicts(String),
}

/// Returns a client that connects in the background, and again when it is disconnected. `command_timeout`: for each command;
/// zero: none.
///
/// # Errors
/// `Client` when the configuration cannot be used.
pub fn client(config: &RedisConfig, command_timeout: Duration) -> Result<Client, RedisError> {
    let mut builder = builder(config, command_timeout);
    builder.with_connection_config(|connection| {
        // A server that hangs, or a network that drops packets, closes no connection: only a missing answer shows it.
        let interval = UNRESPONSIVE_TIMEOUT / 4;
        connection.unresponsive = UnresponsiveConfig { max_timeout: Some(UNRESPONSIVE_TIMEOUT), interval };
    });
    let client = builder.build()?;
    client.connect();
    Ok(client)
}

/// Returns a client for commands that block in the server. It has no time-outs for commands: the caller sets its own.
///
/// # Errors
/// As for `client`.
pub fn waiting_client(config: &RedisConfig) -> Result<Client, RedisError> {
    let client = builder(config, Duration::ZERO).build()?;
    client.connect();
    Ok(client)
}

/// A client per thread. An HTTP worker is a runtime of one thread, and its client's task runs on the same thread: so no
/// command and no answer wakes another thread, and commands that are sent in one turn of the runtime leave in one write.
pub struct PerThread {
    config: RedisConfig,
    timeout: Duration,
    clients: ThreadLocal<Client>,
}

impl PerThread {
    /// Makes no client yet. `timeout`: for each command, with the time that a connection takes.
    pub fn new(config: &RedisConfig, timeout: Duration) -> Self {
        Self { config: config.clone(), timeout, clients: ThreadLocal::new() }
    }

    /// Connects this thread's client, so that its first command need not wait for a connection.
    ///
    /// # Errors
    /// As for `client`.
    pub fn open(&self) -> Result<(), RedisError> {
        match self.clients.get() {
            // The client of a thread that has ended, whose task ended with it.
            Some(unused) => drop(unused.connect()),
            None => drop(self.client()?),
        }
        Ok(())
    }

    /// Runs a command with this thread's client.
    ///
    /// # Errors
    /// `Client` when there is no client or Redis answers with an error; `Late` when it does not answer in time.
    pub async fn call<'a, T, F>(&'a self, command: impl FnOnce(&'a Client) -> F) -> Result<T, RedisError>
    where
        F: Future<Output = Result<T, fred::error::Error>>,
    {
        let client = self.client()?;
        let answer = async {
            // The client would queue the command and send it once connected, when its caller has given up long ago.
            if !client.is_connected() {
                client.wait_for_connect().await?;
            }
            command(client).await
        };
        let too_late = async {
            tokio::time::sleep(self.timeout).await;
            // A thread that had no processor for that long finds the answer and the time-out together: prefer the answer.
            tokio::task::yield_now().await;
        };
        tokio::select! {
            biased;
            answer = answer => Ok(answer?),
            () = too_late => Err(RedisError::Late),
        }
    }

    fn client(&self) -> Result<&Client, RedisError> {
        self.clients.get_or_try(|| client(&self.config, Duration::ZERO))
    }
}

fn builder(config: &RedisConfig, command_timeout: Duration) -> Builder {
    // Each client has pauses of its own, or all would reconnect at once after an outage. The first connection comes after
    // the first pause, too: it is short, since a request may be waiting.
    let random = getrandom::u32().unwrap_or_default();
    let policy = ReconnectPolicy::new_exponential(0, 5 + random % 10, 1500 + random % 1000, 2);
    let mut config = config.fred();
    // Otherwise a client whose first attempt fails never makes another one.
    config.fail_fast = false;
    let mut builder = Builder::from_config(config);
    builder
        .with_performance_config(|performance| {
            performance.default_command_timeout = command_timeout;
            performance.broadcast_channel_capacity = 4096;
        })
        .with_connection_config(|connection| {
            connection.connection_timeout = CONNECT_TIMEOUT;
            connection.internal_command_timeout = CONNECT_TIMEOUT;
            connection.max_command_attempts = 1;
            connection.max_command_buffer_len = 10_000;
            // A firewall that dropped the flow's state sends no reset: only probes and unacknowledged data show it.
            let (idle, interval) = (UNRESPONSIVE_TIMEOUT * 10, UNRESPONSIVE_TIMEOUT * 2);
            let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval);
            let (keepalive, user_timeout) = (Some(keepalive), Some(UNRESPONSIVE_TIMEOUT * 5));
            connection.tcp = TcpConfig { nodelay: Some(true), keepalive, user_timeout, ..TcpConfig::default() };
        })
        .set_policy(policy);
    builder
}

/// Checks the server's version and its eviction policy. A server that does not answer is not needed to start: it is checked
/// in the background when it can be reached, and a problem is logged.
///
/// # Errors
/// `TooOld` and `Evicts` of a server that answers; `Client` when the configuration cannot be used.
pub async fn check(config: &RedisConfig) -> Result<(), RedisError> {
    let client = client(config, Duration::from_secs(1))?;
    let mut connection_errors = client.error_rx();
    let error = tokio::select! {
        checked = inspect(&client) => match checked {
            Err(RedisError::Client(error)) => error.to_string(),
            checked => {
                quit(&client).await;
                return checked;
            }
        },
        Ok((error, _)) = connection_errors.recv() => error.to_string(),
        () = tokio::time::sleep(CHECK_TIMEOUT) => format!("no answer within {} s", CHECK_TIMEOUT.as_secs()),
    };
    tracing::warn!(error, "redis does not answer; workers poll postgres for jobs until it does");
    tokio::spawn(async move {
        let checked = loop {
            match inspect(&client).await {
                Err(RedisError::Client(_)) => tokio::time::sleep(CHECK_INTERVAL).await,
                checked => break checked,
            }
        };
        match checked {
            Ok(()) => tracing::info!("redis answers"),
            Err(error) => tracing::error!(%error, "redis answers, and cannot be relied on; correct it and restart"),
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
        tracing::debug!(%error, "could not close the connection to redis; dropping it");
    }
}

/// Returns whether the server answers a `PING` within 250 ms.
pub async fn answers(client: &Client) -> bool {
    let ping = async { client.ping::<String>(None).await.is_ok() };
    matches!(tokio::time::timeout(HEALTH_TIMEOUT, ping).await, Ok(true))
}
