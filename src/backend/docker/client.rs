//! The connection to one Docker engine, shared by compute and fabric.
//!
//! Promises: building it touches nothing; the first use connects and negotiates the API version, and a failure of that
//! is tried again at the next use. Every call made through `within` ends in bounded time.
//! Refuses: reading `DOCKER_HOST` (the configuration does), schemes other than `unix://` and `tcp://`/`http://`.

use std::{thread, time::Duration};

use bollard::{API_DEFAULT_VERSION, Docker, errors::Error};
use tokio::{
    sync::{OnceCell, Semaphore},
    time,
};

use super::{error, locks::NetworkLocks};
use crate::{backend::BackendError, core::id::ClusterId};

const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
/// For what the engine answers from memory.
pub(super) const SHORT: Duration = Duration::from_secs(10);
/// For what starts or ends processes, on a machine that is busy.
pub(super) const LONG: Duration = Duration::from_secs(60);

pub(super) struct Engine {
    host: String,
    pub(super) cluster: ClusterId,
    client: OnceCell<Docker>,
    /// Creating and starting saturate the cores at about one each; more at a time only adds latency.
    pub(super) starts: Semaphore,
    pub(super) networks: NetworkLocks,
}

impl Engine {
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
            starts: Semaphore::new(cores),
            networks: NetworkLocks::default(),
        })
    }

    /// The client, connected and negotiated.
    pub(super) async fn docker(&self) -> Result<&Docker, BackendError> {
        self.client.get_or_try_init(|| self.connect()).await.map_err(error::unavailable)
    }

    async fn connect(&self) -> Result<Docker, Error> {
        let seconds = LONG.as_secs();
        let client = match self.host.strip_prefix("unix://") {
            Some(path) => Docker::connect_with_unix(path, seconds, API_DEFAULT_VERSION)?,
            None => Docker::connect_with_http(&self.host, seconds, API_DEFAULT_VERSION)?,
        };
        // Without it, later versions of bollard speak their own newest version, which an older engine refuses.
        within(SHORT, client.negotiate_version()).await
    }

    /// The engine's version; proves that it answers.
    pub(super) async fn version(&self) -> Result<String, BackendError> {
        let version = within(SHORT, self.docker().await?.version()).await.map_err(error::unavailable)?;
        Ok(version.version.unwrap_or_default())
    }
}

/// Bounds a whole call: bollard's own time-out covers connecting and the headers, not the body.
pub(super) async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    time::timeout(limit, call).await.unwrap_or(Err(Error::RequestTimeoutError))
}
