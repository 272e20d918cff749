//! A connection to a client: when it is closed, and that an answer which announces this is the last on it.
//!
//! actix decodes what follows a request while that one is answered. So an answer may say `Connection: close` because the
//! request's body has not been received whole, the rest of it comes while the answer is sent, and the next request is
//! served after all; a client that has stopped listening cannot know, and a proxy may take the rest of a body for a
//! request. Here each answer on a connection that is to end says so, and what comes after it is not processed
//! (RFC 9112, 9.6). A connection ends when the client asks for it, when it offers an upgrade (none is taken, and actix
//! reads on in its own way), and when an answer is ready before the request's body is there.
//!
//! One case is actix's own: it takes an answer's `Connection` from the request that it decoded last. Pipelined behind others, a
//! request that asks for `close` may make their answers say so too, though it is still processed.
//!
//! It also ends when the client takes nothing of an answer for `WRITE_TIMEOUT`.

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

/// How long a client may take nothing of an answer. Then the kernel ends the connection: actix, which waits for it to take
/// the next bytes, has no time-out of its own.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take for one answer, however steadily it reads: the largest, a page of 1 MiB, needs 3.5 KiB/s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// How long the last answer has to reach the client when another request follows it: as long as actix waits itself before it
/// closes a connection with unread bytes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// An answer is handed to actix in pieces of this size. It copies what it is given, and counts the time without a request
/// from the moment on that it has all.
const PIECE_BYTES: usize = 32 * 1024;

/// Whether an answer on this connection has said `Connection: close`.
#[derive(Clone, Default)]
struct Closing(Rc<Cell<bool>>);

/// Prepares a connection that was accepted.
pub fn accepted(stream: &dyn Any, data: &mut Extensions) {
    data.insert(Closing::default());
    let Some(stream) = stream.downcast_ref::<TcpStream>() else { return };
    if let Err(error) = SockRef::from(stream).set_tcp_user_timeout(Some(WRITE_TIMEOUT)) {
        tracing::warn!(%error, "cannot set TCP_USER_TIMEOUT; a client that stops reading keeps its connection");
    }
}

/// Decides whether a request is the last one of its connection. The outermost middleware.
///
/// # Errors
/// Those of the inner services: a panic of a handler.
pub async fn middleware<B: MessageBody + 'static>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<Answer>, Error> {
    // None in a unit test.
    let closing = request.conn_data::<Closing>().cloned().unwrap_or_default();
    if closing.0.get() {
        return Ok(drop_connection(request).await);
    }
    let body = RequestBody::share(&mut request);
    let is_last = request.head().connection_type() != ConnectionType::KeepAlive;
    closing.0.set(is_last);
    let mut response = match next.call(request).await {
        Ok(response) => response,
        // A panic. actix closes the connection after an error whose request has an unread body, and says so.
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

/// Waits until the previous answer can have arrived, and ends the connection. From a middleware, actix ends one only by a body
/// that fails: nothing of this response is sent.
async fn drop_connection(request: ServiceRequest) -> ServiceResponse<Answer> {
    tokio::time::sleep(CLOSE_TIMEOUT).await;
    let error = io::Error::other("a request followed the last one of its connection; closing the connection");
    let body = BoxBody::new(BodyStream::new(stream::iter([Err::<Bytes, _>(error)])));
    let response = HttpResponse::with_body(StatusCode::BAD_REQUEST, Answer::new(body, None));
    request.into_response(response)
}

/// A request's body, which its handler may read, in part or not at all.
#[derive(Clone)]
struct RequestBody(Rc<RefCell<Payload>>);

impl RequestBody {
    /// The body, if the request has one; the handler gets the same.
    fn share(request: &mut ServiceRequest) -> Option<Self> {
        let payload = request.take_payload();
        if matches!(payload, Payload::None) {
            return None;
        }
        let body = Self(Rc::new(RefCell::new(payload)));
        request.set_payload(Payload::Stream { payload: Box::pin(body.clone()) });
        Some(body)
    }

    /// Whether all of it has been received. What has is thrown away.
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

/// A response's body, in pieces.
pub struct Answer {
    body: BoxBody,
    next: Bytes,
    started: Instant,
    /// Kept until the answer is sent: if it were dropped, actix would go on reading a body in chunks, without a time-out.
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
        let piece = self.next.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(self.next.split_to(piece))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_that_takes_too_long_breaks_off() {
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
