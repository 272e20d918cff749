//! The connection to one Docker engine, which the compute and the network backend share.
//!
//! Building it connects to nothing. The first call connects and negotiates the API version; if that fails, the next
//! call tries again. Each call through `within` ends in bounded time. The address comes from the configuration, as
//! `unix://`, `tcp://` or `http://`; `DOCKER_HOST` is not read here.

use std::{thread, time::Duration};

use bollard::{API_DEFAULT_VERSION, Docker, errors::Error};
use tokio::{
    sync::{OnceCell, Semaphore},
    time,
};

use super::{error, locks::NetworkLocks};
use crate::{backend::BackendError, core::id::ClusterId};

const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
/// For calls that the engine answers from memory.
pub(super) const SHORT_CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// For calls that start or end processes, on a busy machine.
pub(super) const LONG_CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// One Docker engine, as one cluster uses it.
pub(super) struct Engine {
    host: String,
    /// The cluster whose containers and networks are used.
    pub(super) cluster: ClusterId,
    client: OnceCell<Docker>,
    /// Limits how many containers are created and started at a time. One each saturates a core, so more would only add
    /// latency.
    pub(super) start_permits: Semaphore,
    /// The locks of the networks.
    pub(super) network_locks: NetworkLocks,
}

impl Engine {
    /// Returns an engine that is not connected yet. `host`: its address; `None` is the usual socket.
    ///
    /// # Errors
    /// `Refused` for a scheme that is not supported.
    pub(super) fn new(host: Option<&str>, cluster: ClusterId) -> Result<Self, BackendError> {
        let host = host.filter(|host| !host.is_empty()).unwrap_or(DEFAULT_HOST);
        if !["unix://", "tcp://", "http://"].iter().any(|scheme| host.starts_with(scheme)) {
            return Err(BackendError::Refused(format!("DOCKER_HOST must be unix://… or tcp://…, not {host:?}").into()));
        }
        let cores = thread::available_parallelism().map_or(2, usize::from);
        Ok(Self {
            host: host.to_owned(),
            cluster,
            client: OnceCell::new(),
            start_permits: Semaphore::new(cores),
            network_locks: NetworkLocks::default(),
        })
    }

    /// Returns the client, and connects it at the first call.
    ///
    /// # Errors
    /// `Unavailable` when the engine does not answer.
    pub(super) async fn docker(&self) -> Result<&Docker, BackendError> {
        self.client.get_or_try_init(|| self.connect()).await.map_err(error::unavailable)
    }

    async fn connect(&self) -> Result<Docker, Error> {
        let seconds = LONG_CALL_TIMEOUT.as_secs();
        let client = match self.host.strip_prefix("unix://") {
            Some(path) => Docker::connect_with_unix(path, seconds, API_DEFAULT_VERSION)?,
            None => Docker::connect_with_http(&self.host, seconds, API_DEFAULT_VERSION)?,
        };
        // Without negotiation bollard uses the newest version that it knows, which an older engine refuses.
        within(SHORT_CALL_TIMEOUT, client.negotiate_version()).await
    }

    /// Returns the engine's version.
    ///
    /// # Errors
    /// `Unavailable` when the engine does not answer.
    pub(super) async fn version(&self) -> Result<String, BackendError> {
        let version = within(SHORT_CALL_TIMEOUT, self.docker().await?.version()).await.map_err(error::unavailable)?;
        Ok(version.version.unwrap_or_default())
    }
}

/// Limits the time of a whole call. bollard's own time-out covers connecting and the headers, but not the body.
///
/// # Errors
/// `RequestTimeoutError` after `limit`, else the error of the call.
pub(super) async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    time::timeout(limit, call).await.unwrap_or(Err(Error::RequestTimeoutError))
}
