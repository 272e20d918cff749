//! The HTTP server with its limits and middlewares, shared by the API and by the worker's health and metrics.
//!
//! Around every handler lie, from the outside in: `connection` (when it closes), `request_id`, `request_log`, `metrics` and
//! `panics`. So a panic becomes a 500 that is counted, logged and sent with the request's id like any other response.

use std::{net::TcpListener, time::Duration};

use actix_web::{App, HttpServer, dev::Server, middleware::from_fn, web};
use anyhow::Context;

use super::{connection, metrics, panics, problem::Problem, request_id, request_log};

/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may stay open between two requests; nginx has the same time.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(75);
/// Connections of one thread; further ones wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 25_000;

/// Starts a server on the socket with the routes that `configure` adds, on `workers` threads (0: one per core). A path
/// without a route is answered `not_found`. On a stop, requests in flight get `shutdown_timeout` to finish.
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
            // The one added last is the outermost.
            .wrap(from_fn(panics::middleware))
            .wrap(from_fn(metrics::middleware))
            .wrap(from_fn(request_log::middleware))
            .wrap(from_fn(request_id::middleware))
            .wrap(from_fn(connection::middleware))
            .configure(configure.clone())
            .default_service(web::to(|| async { Err::<&str, _>(Problem::not_found()) }))
    })
    .on_connect(connection::on_connect)
    .client_request_timeout(HEAD_TIMEOUT)
    .keep_alive(KEEP_ALIVE_TIMEOUT)
    .max_connections(CONNECTIONS_MAX)
    .shutdown_timeout(shutdown_timeout.as_secs())
    .disable_signals();
    let server = if workers == 0 { server } else { server.workers(workers) };
    Ok(server.listen(socket).context("cannot serve the socket")?.run())
}

/// Opens the socket to listen on. `variable` is the setting that the address comes from.
///
/// # Errors
/// When the address cannot be bound; the message names `variable`.
pub fn bind(variable: &str, address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| {
        format!(
            "{variable}: cannot listen on {address}; does another process listen there? example: {variable}=127.0.0.1:0"
        )
    })
}
