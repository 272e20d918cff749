//! Opens a span for each request and logs one line at its end.
//!
//! Every line that is logged while a request is answered belongs to its span, and so carries the request id, the method,
//! the route and, once the key is verified, the tenant and the key's id. One line at the end has the status and the
//! duration. Its level is INFO; for a probe (`/health/…`, `/metrics`) that succeeded it is DEBUG, since probes come every
//! few seconds whether there is work or not.

use std::time::Instant;

use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::StatusCode,
    middleware::Next,
};
use tracing::{Instrument, Span, field::Empty};

use super::{request_id, route};
use crate::core::id::{KeyId, TenantId};

/// Answers one request within its span and logs how it ended.
///
/// # Errors
/// Those of the inner services, unchanged.
pub async fn middleware<B: MessageBody>(request: ServiceRequest, next: Next<B>) -> Result<ServiceResponse<B>, Error> {
    let started = Instant::now();
    let route = route::pattern(request.request());
    let route = route.as_deref().unwrap_or("unknown");
    // Not `info_span`: lines that are logged with RUST_LOG=error need the request id as well.
    let span = tracing::error_span!(
        "request",
        request_id = %request_id::current(),
        method = %request.method(),
        route,
        tenant = Empty,
        key = Empty,
    );
    let is_probe = route.starts_with("/health/") || route == "/metrics";
    let result = next.call(request).instrument(span.clone()).await;
    let status = match &result {
        Ok(response) => response.status(),
        Err(error) => error.as_response_error().status_code(),
    };
    span.in_scope(|| log_end(status, started, is_probe));
    result
}

fn log_end(status: StatusCode, started: Instant, is_probe: bool) {
    let (status, duration_ms) = (status.as_u16(), started.elapsed().as_secs_f64() * 1e3);
    if is_probe && status < 400 {
        tracing::debug!(status, duration_ms, "answered request");
    } else {
        tracing::info!(status, duration_ms, "answered request");
    }
}

/// Adds the authenticated caller to the span of the current request.
pub fn record_caller(tenant: TenantId, key: KeyId) {
    Span::current().record("tenant", tracing::field::display(tenant)).record("key", tracing::field::display(key));
}
