//! Decides when a connection to a client is closed, and guarantees that a response with `Connection: close` is the last one
//! that is sent and acted on.
//!
//! actix alone does not guarantee it, because it decodes further input while a request is answered. It says `close`
//! when a response is ready before the request's body was received; if the rest of the body arrives while the response
//! is being sent, the next request is served all the same. The client, which has received `close`, cannot tell whether
//! that request had an effect, and a proxy may take the rest of the body for a request. So this middleware marks the
//! connection as closing, and a request that is decoded after the last one is dropped without being handled (RFC 9112,
//! 9.6).
//!
//! A request is the last of its connection when it says `Connection: close`, when it offers an upgrade (none is accepted,
//! and actix would read what follows as another protocol), and when its response is ready before its body was received.
//!
//! One case is left to actix: it takes a response's `Connection` header from the request that it decoded last. When a
//! request with `Connection: close` is pipelined behind others, their responses may say `close` too, and the request is
//! still handled.
//!
//! A connection also ends when the client accepts no byte of a response for `WRITE_TIMEOUT`, or takes longer than
//! `ANSWER_TIMEOUT` for all of it.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use actix_web::{
    Error, HttpMessage, HttpResponse,
    body::{BodySize, BodyStream, BoxBody, MessageBody},
    dev::{Extensions, Payload, ServiceRequest, ServiceResponse},
    error::{InternalError, PayloadError},
    http::{ConnectionType, StatusCode},
    middleware::Next,
    rt::net::TcpStream,
    web::Bytes,
};
use futures_util::{Stream, stream};
use socket2_05::SockRef;

/// How long a client may accept no byte of a response. Then the kernel ends the connection: actix has no time-out of its
/// own for writing.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take for one response, however steadily it reads: the largest, a page of 1 MiB, needs 3.5 KiB/s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// How long the last response has to reach the client when another request follows it; actix waits as long before it closes
/// a connection with unread bytes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// A response is handed to actix in pieces of at most this size. actix copies each piece into its own buffer, and starts the
/// keep-alive timer when it has the last one.
const PIECE_BYTES_MAX: usize = 32 * 1024;

/// Whether a response on this connection has said `Connection: close`.
#[derive(Clone, Default)]
struct Closing(Rc<Cell<bool>>);

/// Prepares a connection that the server has accepted.
pub fn on_connect(stream: &dyn Any, data: &mut Extensions) {
    data.insert(Closing::default());
    let Some(stream) = stream.downcast_ref::<TcpStream>() else { return };
    if let Err(error) = SockRef::from(stream).set_tcp_user_timeout(Some(WRITE_TIMEOUT)) {
        tracing::warn!(%error, "could not set TCP_USER_TIMEOUT, a client that stops reading keeps its connection");
    }
}

/// Handles a request unless an earlier one was the last of its connection, and marks the response when this one is. It must
/// be the outermost middleware.
///
/// # Errors
/// Those of the inner services.
pub async fn middleware<B: MessageBody + 'static>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<Answer>, Error> {
    // Tests without a connection have none.
    let closing = request.conn_data::<Closing>().cloned().unwrap_or_default();
    if closing.0.get() {
        return Ok(drop_connection(request).await);
    }
    let body = RequestBody::share(&mut request);
    let is_last = request.head().connection_type() != ConnectionType::KeepAlive;
    closing.0.set(is_last);
    let mut response = match next.call(request).await {
        Ok(response) => response,
        // After an error whose request has an unread body, actix closes the connection and says so.
        Err(error) if is_last || body.as_ref().is_some_and(|body| !body.has_ended()) => {
            closing.0.set(true);
            let mut response = error.error_response();
            response.head_mut().set_connection_type(ConnectionType::Close);
            return Err(InternalError::from_response(error, response).into());
        }
        Err(error) => return Err(error),
    };
    let unread = body.filter(|body| !body.has_ended());
    if is_last || unread.is_some() {
        closing.0.set(true);
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    Ok(response.map_body(|_, body| Answer::new(body.boxed(), unread)))
}

/// Waits until the last response has had time to arrive, then ends the connection. A middleware can make actix end one only
/// by a body that fails; nothing of this response is sent.
async fn drop_connection(request: ServiceRequest) -> ServiceResponse<Answer> {
    tokio::time::sleep(CLOSE_TIMEOUT).await;
    let error = io::Error::other("a request followed the last one of its connection; closing the connection");
    let body = BoxBody::new(BodyStream::new(stream::iter([Err::<Bytes, _>(error)])));
    let response = HttpResponse::with_body(StatusCode::BAD_REQUEST, Answer::new(body, None));
    request.into_response(response)
}

/// A request's body, shared with the handler, which may read all, a part or nothing of it.
#[derive(Clone)]
struct RequestBody(Rc<RefCell<Payload>>);

impl RequestBody {
    /// Returns the request's body, if it has one, and leaves it in place for the handler.
    fn share(request: &mut ServiceRequest) -> Option<Self> {
        let payload = request.take_payload();
        if matches!(payload, Payload::None) {
            return None;
        }
        let body = Self(Rc::new(RefCell::new(payload)));
        request.set_payload(Payload::Stream { payload: Box::pin(body.clone()) });
        Some(body)
    }

    /// Returns whether all of it has been received. Drops what has been received and not read.
    fn has_ended(&self) -> bool {
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut payload = self.0.borrow_mut();
        loop {
            match Pin::new(&mut *payload).poll_next(&mut context) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(_) => return true,
                Poll::Pending => return false,
            }
        }
    }
}

impl Stream for RequestBody {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_next(cx)
    }
}

/// A response's body, handed to actix in pieces within `ANSWER_TIMEOUT`.
pub struct Answer {
    body: BoxBody,
    next: Bytes,
    started: Instant,
    /// Lives as long as the response: if it were dropped earlier, actix would go on reading a chunked body, without a
    /// time-out.
    _unread: Option<RequestBody>,
}

impl Answer {
    fn new(body: BoxBody, unread: Option<RequestBody>) -> Self {
        Self { body, next: Bytes::new(), started: Instant::now(), _unread: unread }
    }
}

impl MessageBody for Answer {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        if self.started.elapsed() > ANSWER_TIMEOUT {
            return Poll::Ready(Some(Err(
                io::Error::other("the client reads too slowly; closing the connection").into()
            )));
        }
        if self.next.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_next(cx)) {
                Some(Ok(bytes)) => self.next = bytes,
                end => return Poll::Ready(end),
            }
        }
        let piece = self.next.len().min(PIECE_BYTES_MAX);
        Poll::Ready(Some(Ok(self.next.split_to(piece))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_that_takes_too_long_is_cut_off() {
        let mut context = Context::from_waker(std::task::Waker::noop());
        let long_ago =
            Instant::now().checked_sub(ANSWER_TIMEOUT + Duration::from_secs(1)).expect("the machine runs for longer");

        for (started, is_sent) in [(Instant::now(), true), (long_ago, false)] {
            let mut answer = Answer { started, ..Answer::new(BoxBody::new("text"), None) };
            let polled = Pin::new(&mut answer).poll_next(&mut context);
            assert_eq!(matches!(polled, Poll::Ready(Some(Ok(_)))), is_sent, "{polled:?}");
        }
    }
}
