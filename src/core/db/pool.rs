//! One server's pool: bounded, with every time-out set, and closed connections noticed before they are lent.

use std::time::{Duration, Instant};

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, PoolConfig, PoolError, RecyclingMethod, Runtime, Timeouts,
};
use tokio_postgres::{NoTls, config::SslMode};

use super::DbError;
use crate::config::database::PostgresUrl;

/// How long a request waits for a connection, be it one that becomes free or a new one. A server that does not refuse is
/// busy, not down: waiting beats refusing. Opening takes longest when it matters most, in a burst that needs many at once.
const WAIT: Duration = Duration::from_secs(2);
const RECYCLE: Duration = Duration::from_millis(250);
/// A connection that idled this long may have been cut by something in between: ask it before lending it.
const SUSPICIOUS_IDLE: Duration = Duration::from_secs(15);
const MAX_AGE: Duration = Duration::from_secs(30 * 60);

pub struct Pool {
    role: &'static str,
    pool: deadpool_postgres::Pool,
}

impl Pool {
    pub fn new(role: &'static str, url: &PostgresUrl, max_conns: usize) -> Result<Self, DbError> {
        let mut config = url.config();
        config
            .connect_timeout(Duration::from_millis(500))
            .tcp_user_timeout(Duration::from_secs(3))
            .keepalives_idle(Duration::from_secs(15))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .application_name(format!("app-{role}"));
        let read_only = if role == "replica" { " -c default_transaction_read_only=on" } else { "" };
        let theirs = config.get_options().unwrap_or_default();
        let options = format!(
            "{theirs} -c statement_timeout=2000 -c lock_timeout=1000 -c idle_in_transaction_session_timeout=10000{read_only}"
        );
        config.options(options);
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = if config.get_ssl_mode() == SslMode::Require {
            Manager::from_config(config, super::migrate::tls()?, recycling)
        } else {
            Manager::from_config(config, NoTls, recycling)
        };
        let mut pool_config = PoolConfig::new(max_conns);
        // Waiting and connecting share one deadline, in `get`.
        pool_config.timeouts = Timeouts { wait: None, create: None, recycle: Some(RECYCLE) };
        let pool = deadpool_postgres::Pool::builder(manager)
            .config(pool_config)
            .runtime(Runtime::Tokio1)
            .pre_recycle(Hook::async_fn(|client, lent| {
                Box::pin(async move {
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
        Ok(Self { role, pool })
    }

    pub fn role(&self) -> &'static str {
        self.role
    }

    pub async fn get(&self) -> Result<Object, DbError> {
        let asked = Instant::now();
        let result = tokio::time::timeout(WAIT, self.pool.get()).await;
        metrics::histogram!("db_checkout_seconds", "role" => self.role).record(asked.elapsed());
        let reason = match result {
            Ok(Ok(object)) => return Ok(object),
            Err(_) => "no connection could be had in time".to_owned(),
            // The driver's own text hides the reason ("error connecting to server"): its source tells.
            Ok(Err(PoolError::Backend(cause))) => {
                std::error::Error::source(&cause).map_or_else(|| cause.to_string(), ToString::to_string)
            }
            Ok(Err(other)) => other.to_string(),
        };
        Err(DbError::Unavailable(format!("{}: {reason}", self.role)))
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
            metrics::gauge!(name, "role" => self.role).set(value as f64);
        }
    }
}
