//! The server with its limits, the same for the API and the worker's health.

use std::{net::TcpListener, time::Duration};

use actix_web::{App, HttpServer, dev::Server, middleware::from_fn, web};
use anyhow::Context;

use super::{connection, metrics, panics, problem::Problem, request_id, request_log};

/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(75);
const MAX_CONNECTIONS: usize = 25_000;

/// Serves what `configure` adds, until it is stopped. `workers` 0: one per core. Unknown paths are problems.
///
/// # Errors
/// When the socket cannot be served.
pub fn serve(
    socket: TcpListener,
    workers: usize,
    shutdown_timeout: Duration,
    configure: impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static,
) -> anyhow::Result<Server> {
    let server = HttpServer::new(move || {
        App::new()
            // The last is the outermost.
            .wrap(from_fn(panics::middleware))
            .wrap(from_fn(metrics::middleware))
            .wrap(from_fn(request_log::middleware))
            .wrap(from_fn(request_id::middleware))
            .wrap(from_fn(connection::middleware))
            .configure(configure.clone())
            .default_service(web::to(|| async { Err::<&str, _>(Problem::not_found()) }))
    })
    .on_connect(connection::accepted)
    .client_request_timeout(HEAD_TIMEOUT)
    .keep_alive(KEEP_ALIVE)
    .max_connections(MAX_CONNECTIONS)
    .shutdown_timeout(shutdown_timeout.as_secs())
    .disable_signals();
    let server = if workers == 0 { server } else { server.workers(workers) };
    Ok(server.listen(socket).context("cannot serve the socket")?.run())
}

/// Opens the socket to listen on; the message names the variable.
///
/// # Errors
/// When the address cannot be had.
pub fn bind(variable: &str, address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| {
        format!("{variable}: cannot listen on {address}; is another process there? example: {variable}=127.0.0.1:0")
    })
}
