//! Serves `GET /keys/self` without checking an API key: the same server, routes, handler and response as `app serve`,
//! but a fixed caller is attached to every request. `make bench-identity` compares the verification of keys with it.
//!
//! Prints its address, then serves until it is killed.

use std::{io::Write, sync::Arc, time::Duration};

use actix_web::{
    Error, HttpMessage,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    middleware::{Next, from_fn},
};
use app::{
    api,
    core::{
        id::{KeyId, TenantId},
        identity::{Caller, KeyLimits, Scope},
    },
    http::listener,
    telemetry,
};

thread_local! {
    static CALLER: Arc<Caller> = Arc::new(Caller {
        key: KeyId::new(),
        name: "bench".into(),
        tenant: TenantId::new(),
        scopes: vec![Scope::KeysRead],
        expires_at: None,
        limits: KeyLimits::GENERAL,
    });
}

/// Attaches the fixed caller, in place of the authentication.
async fn attach_caller<B: MessageBody>(request: ServiceRequest, next: Next<B>) -> Result<ServiceResponse<B>, Error> {
    request.extensions_mut().insert(CALLER.with(Clone::clone));
    next.call(request).await
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tokio::spawn(telemetry::upkeep(telemetry::metrics()?));
    let socket = listener::bind("APP_LISTEN", "127.0.0.1:0".parse()?)?;
    let mut out = std::io::stdout();
    writeln!(out, "http://{}", socket.local_addr()?)?;
    out.flush()?;
    let server = listener::serve(socket, 0, Duration::ZERO, |config| {
        config.service(api::open().wrap(from_fn(attach_caller)));
    })?;
    Ok(server.await?)
}
