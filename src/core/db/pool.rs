//! One server's pool: bounded, with every time-out set, and closed connections noticed before they are lent.
//!
//! A connection of the primary was opened to a server that took writes. When one turns out to take none, all that were
//! opened before are closed (a promoted server behind the same address cannot be reached otherwise), and each new one is
//! checked as it is opened.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, PoolConfig, PoolError, RecyclingMethod, Runtime, Timeouts,
};
use tokio_postgres::NoTls;

use super::{
    DbError,
    connect::{self, Role},
};
use crate::config::database::PostgresUrl;

/// How long a request waits for a connection, be it one that becomes free or a new one. A server that does not refuse is
/// busy, not down: waiting beats refusing. Opening takes longest when it matters most, in a burst that needs many at once.
const WAIT: Duration = Duration::from_secs(2);
const RECYCLE: Duration = Duration::from_millis(250);
/// A connection that idled this long may have been cut by something in between: ask it before lending it.
const SUSPICIOUS_IDLE: Duration = Duration::from_secs(15);
const MAX_AGE: Duration = Duration::from_secs(30 * 60);

/// Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    role: Role,
    pool: deadpool_postgres::Pool,
    /// What was opened earlier is closed, not lent.
    opened_after: Arc<RwLock<Instant>>,
}

impl Pool {
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
        // Waiting and connecting share one deadline, in `get`.
        pool_config.timeouts = Timeouts { wait: None, create: None, recycle: Some(RECYCLE) };
        let opened_after = Arc::new(RwLock::new(Instant::now()));
        let limit = opened_after.clone();
        let pool = deadpool_postgres::Pool::builder(manager)
            .config(pool_config)
            .runtime(Runtime::Tokio1)
            .pre_recycle(Hook::async_fn(move |client, lent| {
                let limit = *limit.read().unwrap_or_else(PoisonError::into_inner);
                Box::pin(async move {
                    if lent.created < limit {
                        count_discarded("read_only", 1);
                        return Err(HookError::message("opened before the server took no writes"));
                    }
                    if lent.created.elapsed() > MAX_AGE {
                        return Err(HookError::message("too old"));
                    }
                    if lent.last_used() > SUSPICIOUS_IDLE {
                        client.check_connection().await.map_err(HookError::Backend)?;
                    }
                    Ok(())
                })
            }))
            .build()
            .map_err(|error| DbError::Unavailable(error.to_string()))?;
        Ok(Self { role, pool, opened_after })
    }

    pub fn role(&self) -> Role {
        self.role
    }

    pub async fn get(&self) -> Result<Object, DbError> {
        let asked = Instant::now();
        let result = tokio::time::timeout(WAIT, self.pool.get()).await;
        metrics::histogram!("db_checkout_seconds", "role" => self.role.as_str()).record(asked.elapsed());
        let reason = match result {
            Ok(Ok(object)) => return Ok(object),
            Err(_) => "no connection could be had in time".to_owned(),
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

    /// Passes a result on; `ReadOnly` closes all connections, idle ones at once and the others as they come back.
    pub fn close_if_read_only<T>(&self, result: Result<T, DbError>) -> Result<T, DbError> {
        if matches!(result, Err(DbError::ReadOnly)) {
            *self.opened_after.write().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            let idle = self.pool.retain(|_, _| false).removed.len();
            count_discarded("read_only", idle);
            tracing::warn!(idle, "the primary takes no writes: closed its idle connections; new ones are checked");
        }
        result
    }

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

/// Counts connections that were closed for a cause, not for their age.
pub fn count_discarded(cause: &'static str, count: usize) {
    metrics::counter!("db_conns_discarded_total", "cause" => cause).increment(count as u64);
}
