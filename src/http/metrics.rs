//! Counts and times requests by method, route and status.
//!
//! The route is the pattern (`/instances/{id}`), never the path: each label value is a time series in every process, so ids
//! and what clients invent (unknown paths, unknown methods) must not become one.

use std::{sync::Arc, time::Instant};

use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
};

use super::route;

/// Returns the metrics of this process in Prometheus' text format; a listener calls it to answer `/metrics`.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// Counts and times one request.
///
/// # Errors
/// Those of the inner services, unchanged.
pub async fn middleware<B: MessageBody>(request: ServiceRequest, next: Next<B>) -> Result<ServiceResponse<B>, Error> {
    let started = Instant::now();
    let route = route::pattern(request.request()).map_or_else(|| "unknown".to_owned(), |pattern| pattern.to_string());
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS") => known.to_owned(),
        _ => "other".to_owned(),
    };
    let result = next.call(request).await;
    let status = match &result {
        Ok(response) => response.status(),
        Err(error) => error.as_response_error().status_code(),
    };
    let labels = [("method", method.clone()), ("route", route.clone()), ("status", status.as_u16().to_string())];
    ::metrics::counter!("http_requests_total", &labels).increment(1);
    ::metrics::histogram!("http_request_seconds", "method" => method, "route" => route).record(started.elapsed());
    result
}
