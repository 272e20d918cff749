//! The connection pool of one server: bounded, with every time-out set; a connection is checked before it is reused.
//!
//! A connection to the primary was opened to a server that took writes. When a server turns out to take none (a standby
//! behind the same address, say), all connections that were opened before are closed, since a promoted server could not
//! be reached through them, and each new connection is checked as it is opened.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, PoolConfig, PoolError, RecyclingMethod, Runtime, Timeouts,
};
use parking_lot::RwLock;
use tokio_postgres::NoTls;

use super::{
    DbError,
    connect::{self, Role},
};
use crate::config::database::PostgresUrl;

/// How long a request waits for a connection, be it one that becomes free or a new one. A server that does not refuse
/// connections is busy, not down, so that waiting beats an error. In a burst that needs many new connections at once,
/// opening one takes longest.
const CHECKOUT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the check of a connection that is reused may take.
const RECYCLE_TIMEOUT: Duration = Duration::from_millis(250);
/// A connection that was idle for longer is checked with a round trip before it is reused: a firewall may have dropped
/// it.
const UNCHECKED_IDLE_MAX: Duration = Duration::from_secs(15);
/// Older connections are closed.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(30 * 60);

/// The connections to one server. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    role: Role,
    pool: deadpool_postgres::Pool,
    /// Connections that were opened earlier are closed, not reused.
    opened_after: Arc<RwLock<Instant>>,
}

impl Pool {
    /// Makes a pool; connects to nothing yet.
    ///
    /// # Errors
    /// `Unavailable` when the TLS set-up or the pool cannot be built.
    pub fn new(role: Role, url: &PostgresUrl, max_conns: usize) -> Result<Self, DbError> {
        let read_only = if role == Role::Replica { " -c default_transaction_read_only=on" } else { "" };
        let settings = format!(
            "-c statement_timeout=2000 -c lock_timeout=1000 -c idle_in_transaction_session_timeout=10000{read_only}"
        );
        let mut config = connect::config(url, role, &format!("app-{}", role.as_str()), &settings);
        config
            .connect_timeout(Duration::from_millis(500))
            .tcp_user_timeout(Duration::from_secs(3))
            .keepalives_idle(Duration::from_secs(15))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3);
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = match connect::tls(&config)? {
            Some(tls) => Manager::from_config(config, tls, recycling),
            None => Manager::from_config(config, NoTls, recycling),
        };
        let mut pool_config = PoolConfig::new(max_conns);
        // `get` has one time-out for waiting and connecting together.
        pool_config.timeouts = Timeouts { wait: None, create: None, recycle: Some(RECYCLE_TIMEOUT) };
        let opened_after = Arc::new(RwLock::new(Instant::now()));
        let limit = opened_after.clone();
        let pool = deadpool_postgres::Pool::builder(manager)
            .config(pool_config)
            .runtime(Runtime::Tokio1)
            .pre_recycle(Hook::async_fn(move |client, metrics| {
                let limit = *limit.read();
                Box::pin(async move {
                    if metrics.created < limit {
                        count_discarded("read_only", 1);
                        return Err(HookError::message("opened before the server took no writes"));
                    }
                    if metrics.created.elapsed() > CONNECTION_AGE_MAX {
                        return Err(HookError::message("too old"));
                    }
                    if metrics.last_used() > UNCHECKED_IDLE_MAX {
                        client.check_connection().await.map_err(HookError::Backend)?;
                    }
                    Ok(())
                })
            }))
            .build()
            .map_err(|error| DbError::Unavailable(error.to_string()))?;
        Ok(Self { role, pool, opened_after })
    }

    /// Returns what its server is used for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Takes a connection, an idle one or a new one.
    ///
    /// # Errors
    /// `Unavailable` when there is none in time; `ReadOnly` when the primary takes no writes.
    pub async fn get(&self) -> Result<Object, DbError> {
        let started = Instant::now();
        let result = tokio::time::timeout(CHECKOUT_TIMEOUT, self.pool.get()).await;
        metrics::histogram!("db_checkout_seconds", "role" => self.role.as_str()).record(started.elapsed());
        let reason = match result {
            Ok(Ok(object)) => return Ok(object),
            Err(_) => "no connection was available in time".to_owned(),
            Ok(Err(PoolError::Backend(cause))) => match DbError::of_connecting(&cause) {
                DbError::Unavailable(reason) => reason,
                other => return Err(other),
            },
            Ok(Err(other)) => other.to_string(),
        };
        Err(DbError::Unavailable(format!("{}: {reason}", self.role.as_str())))
    }

    /// Makes all connections prepare their statements anew.
    pub fn forget_statements(&self) {
        self.pool.manager().statement_caches.clear();
    }

    /// Returns the result unchanged. `ReadOnly` closes all connections, idle ones at once and the others when they come
    /// back.
    pub fn close_if_read_only<T>(&self, result: Result<T, DbError>) -> Result<T, DbError> {
        if matches!(result, Err(DbError::ReadOnly)) {
            *self.opened_after.write() = Instant::now();
            let idle = self.pool.retain(|_, _| false).removed.len();
            count_discarded("read_only", idle);
            tracing::warn!(idle, "the primary takes no writes: closed its idle connections; new ones are checked");
        }
        result
    }

    /// Sets the gauges of the pool.
    pub fn report(&self) {
        let status = self.pool.status();
        for (name, value) in [
            ("db_pool_max", status.max_size),
            ("db_pool_size", status.size),
            ("db_pool_available", status.available),
            ("db_pool_waiting", status.waiting),
        ] {
            #[allow(clippy::cast_precision_loss, reason = "a pool is small")]
            metrics::gauge!(name, "role" => self.role.as_str()).set(value as f64);
        }
    }
}

/// Counts connections that were closed for a cause other than their age.
pub fn count_discarded(cause: &'static str, count: usize) {
    metrics::counter!("db_conns_discarded_total", "cause" => cause).increment(count as u64);
}
