//! `GET /keys/self` with nobody at the door: the same server, routes, handler and answer as `app serve`, but every
//! request has the same caller and nobody asks for a key. What `make bench-identity` compares checking one with.
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

async fn anybody<B: MessageBody>(request: ServiceRequest, next: Next<B>) -> Result<ServiceResponse<B>, Error> {
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
        config.service(api::open().wrap(from_fn(anybody)));
    })?;
    Ok(server.await?)
}
