//! `APP_LISTEN` and how the API stops.

use std::{net::SocketAddr, time::Duration};

use clap::Args;

use super::{ConfigError, setting};

#[derive(Args, Clone, Debug)]
pub struct HttpArgs {
    /// Where the API listens.
    #[arg(long, env = "APP_LISTEN", default_value = "0.0.0.0:8080", value_name = "ADDRESS:PORT")]
    listen: String,
    /// Threads that serve requests; 0: one per core.
    #[arg(long, env = "APP_HTTP_WORKERS", default_value = "0", value_name = "N")]
    http_workers: String,
    /// After SIGTERM, how long /health/ready answers 503 before connections are refused, in milliseconds.
    #[arg(long, env = "APP_SHUTDOWN_DELAY_MS", default_value = "1000", value_name = "MS")]
    shutdown_delay_ms: String,
    /// After that, how long requests in flight may take, in milliseconds.
    #[arg(long, env = "APP_SHUTDOWN_TIMEOUT_MS", default_value = "20000", value_name = "MS")]
    shutdown_timeout_ms: String,
}

#[derive(Clone, Copy, Debug)]
pub struct HttpConfig {
    pub listen: SocketAddr,
    /// 0: one per core.
    pub workers: usize,
    pub shutdown_delay: Duration,
    pub shutdown_timeout: Duration,
}

impl HttpArgs {
    /// # Errors
    /// The first setting that is wrong.
    pub fn resolve(&self) -> Result<HttpConfig, ConfigError> {
        Ok(HttpConfig {
            listen: setting("APP_LISTEN", &self.listen, "0.0.0.0:8080").listen()?,
            workers: setting("APP_HTTP_WORKERS", &self.http_workers, "4").between(0, 1024)?,
            shutdown_delay: setting("APP_SHUTDOWN_DELAY_MS", &self.shutdown_delay_ms, "2000").millis(0, 600_000)?,
            shutdown_timeout: setting("APP_SHUTDOWN_TIMEOUT_MS", &self.shutdown_timeout_ms, "20000")
                .millis(0, 600_000)?,
        })
    }
}
