//! Panics of handlers and extractors: a bug in one of them is the end of its request, not of the connection or the thread.

use std::{any::Any, panic::AssertUnwindSafe};

use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
};
use futures_util::FutureExt;

use super::problem::{Code, Problem};

/// Answers 500 when what is inside panics.
///
/// # Errors
/// Those from inside; `internal` for a panic.
pub async fn middleware<B: MessageBody>(request: ServiceRequest, next: Next<B>) -> Result<ServiceResponse<B>, Error> {
    // Whatever the panic left half-done is dropped with the request; what requests share is behind locks and channels.
    let answered = AssertUnwindSafe(async { next.call(request).await }).catch_unwind().await;
    answered.unwrap_or_else(|panic| {
        tracing::error!(panic = message(&*panic), "a handler panicked; answering 500");
        Err(Problem::new(Code::Internal, "the request id leads to the log").into())
    })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or_default()
}
