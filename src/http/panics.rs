//! Turns a panic of a handler or an extractor into a response: the bug ends its request with 500 `internal`, and neither the
//! connection nor the thread with its other requests.

use std::{any::Any, panic::AssertUnwindSafe};

use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
};
use futures_util::FutureExt;

use super::problem::Problem;

/// Answers one request, with `internal` when an inner service panics.
///
/// # Errors
/// Those of the inner services; `internal` for a panic.
pub async fn middleware<B: MessageBody>(request: ServiceRequest, next: Next<B>) -> Result<ServiceResponse<B>, Error> {
    // Unwind safe: what the panic left unfinished is dropped with the request, and what requests share is behind locks and
    // channels.
    let answered = AssertUnwindSafe(async { next.call(request).await }).catch_unwind().await;
    answered.unwrap_or_else(|panic| {
        tracing::error!(panic = message(&*panic), "handler panicked, answering 500");
        Err(Problem::internal().into())
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or_default()
}
