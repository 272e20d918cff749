//! `APP_LISTEN`, `APP_HTTP_WORKERS`, `APP_SHUTDOWN_*`: where the API listens and how it stops.

use std::{net::SocketAddr, time::Duration};

use clap::Args;

use super::value::{address, millis, number};

/// The address of the API, which `app serve` listens on and `app healthcheck` connects to.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "HTTP API")]
pub struct ListenArgs {
    /// Address and port that the API listens on; `app healthcheck` connects to it.
    #[arg(long, env = "APP_LISTEN", default_value = "0.0.0.0:8080", value_name = "ADDRESS:PORT",
          value_parser = address("0.0.0.0:8080"))]
    pub listen: SocketAddr,
}

/// The API's listener.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "HTTP API")]
pub struct HttpConfig {
    /// The address.
    #[command(flatten)]
    pub address: ListenArgs,
    /// Number of threads that serve requests; 0 means one per core.
    #[arg(long = "http-workers", env = "APP_HTTP_WORKERS", default_value = "0", value_name = "N",
          value_parser = number(0_usize, 1024, "4"))]
    pub workers: usize,
    /// After SIGTERM, how long /health/ready answers 503 before connections are refused, in milliseconds.
    #[arg(long = "shutdown-delay-ms", env = "APP_SHUTDOWN_DELAY_MS", default_value = "1000", value_name = "MS",
          value_parser = millis(0, 600_000, "2000"))]
    pub shutdown_delay: Duration,
    /// After that, how long requests in flight may take, in milliseconds.
    #[arg(long = "shutdown-timeout-ms", env = "APP_SHUTDOWN_TIMEOUT_MS", default_value = "20000", value_name = "MS",
          value_parser = millis(0, 600_000, "20000"))]
    pub shutdown_timeout: Duration,
}
