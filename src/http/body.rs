//! Reads JSON bodies into the type that a handler expects.
//!
//! A body must be `application/json`, arrive within `BODY_TIMEOUT`, and have at most `BODY_BYTES_MAX` bytes and
//! `strict::VALUES_MAX` values. A body that cannot be read as JSON is answered 400; one that can, but does not have the
//! type's shape, is answered 422 with a JSON pointer to the place. Parsing takes time in proportion to the body's length,
//! because the thread that does it answers other requests as well.

use std::time::Duration;

use actix_web::{HttpMessage, HttpRequest, http::header, web};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    problem::{Code, Problem},
    strict::{self, Objects, Unreadable},
};
use crate::core::invalid::Invalid;

/// Largest body, in bytes; nginx has the same limit.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Of a body that is too large, this many bytes are read and dropped: a client that is still sending when the connection
/// closes would lose the response.
const DRAINED_BYTES_MAX: usize = 16 * BODY_BYTES_MAX;
/// How long the whole body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// A request's body.
#[derive(Debug)]
pub struct Json<T> {
    /// The document as it was sent; requests with one `Idempotency-Key` are compared by it.
    pub sent: Value,
    /// The document read as its type.
    pub value: T,
}

/// Reads the request's body.
///
/// # Errors
/// `malformed_request` when the body ends early, takes longer than `BODY_TIMEOUT` or is not JSON; `payload_too_large`;
/// `unsupported_media_type`; `validation_failed` with the place of what does not fit the type.
pub async fn json<T: DeserializeOwned>(request: &HttpRequest, payload: web::Payload) -> Result<Json<T>, Problem> {
    let is_json =
        request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
            value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
        });
    let bytes = tokio::time::timeout(BODY_TIMEOUT, read(payload, length(request)))
        .await
        .map_err(|_| Problem::new(Code::MalformedRequest, "the body took longer than 10 s to arrive"))??;
    if !is_json {
        return Err(Problem::new(Code::UnsupportedMediaType, "send Content-Type: application/json"));
    }
    parse(&bytes)
}

/// Returns how many bytes of the payload are the body (RFC 9112, 6.3); without a limit for a chunked one, which marks its
/// own end.
///
/// When a request offers an upgrade to WebSocket, actix takes whatever follows the head for the payload. No route accepts
/// the offer, and an offer that is not accepted changes nothing about the body (RFC 9110, 7.8).
fn length(request: &HttpRequest) -> usize {
    if request.chunked().unwrap_or(false) {
        return usize::MAX;
    }
    // A length that is not a number was refused by actix.
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    length.and_then(|length| length.trim().parse().ok()).unwrap_or(0)
}

async fn read(mut payload: web::Payload, length: usize) -> Result<Vec<u8>, Problem> {
    let (mut bytes, mut total) = (Vec::new(), 0usize);
    while total < length
        && let Some(chunk) = payload.next().await
    {
        let chunk = chunk.map_err(|_| Problem::new(Code::MalformedRequest, "the body ended early"))?;
        let chunk = &chunk[..chunk.len().min(length - total)];
        total += chunk.len();
        if total <= BODY_BYTES_MAX {
            bytes.extend_from_slice(chunk);
        } else if total > DRAINED_BYTES_MAX {
            break;
        }
    }
    if total > BODY_BYTES_MAX {
        return Err(Problem::new(Code::PayloadTooLarge, format!("the body may have at most {BODY_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<Json<T>, Problem> {
    let sent = strict::read(bytes).map_err(|unreadable| match unreadable {
        Unreadable::Malformed { reason, line, column } => {
            Problem::new(Code::MalformedRequest, format!("the body {reason}: line {line} column {column}"))
        }
        Unreadable::TooManyValues => {
            let detail = format!("must have at most {} values", strict::VALUES_MAX);
            Problem::invalid(vec![Invalid::new("", "too_long", detail)])
        }
    })?;
    if let Some(pointer) = find_nul(&sent) {
        return Err(Problem::invalid(vec![Invalid::new(pointer, "invalid", "must not contain U+0000")]));
    }
    let value = serde_path_to_error::deserialize(Objects(&sent)).map_err(|error| {
        // The crate's own form of a path has indices as `[1]`.
        let part = |part: &serde_path_to_error::Segment| match part {
            serde_path_to_error::Segment::Seq { index } => Some(index.to_string()),
            serde_path_to_error::Segment::Map { key } => Some(key.clone()),
            _ => None,
        };
        let path: Vec<String> = error.path().iter().filter_map(part).collect();
        Problem::invalid(vec![wrong_shape(&path, &error.inner().to_string())])
    })?;
    Ok(Json { sent, value })
}

/// Describes a value that does not have its type's shape. serde reports a missing or unknown field at the object that it
/// belongs to; the pointer leads to the field itself.
fn wrong_shape(path: &[String], message: &str) -> Invalid {
    let field = message.split('`').nth(1);
    let (code, field) = if message.starts_with("missing field") {
        ("required", field)
    } else if message.starts_with("unknown field") {
        ("unknown_field", field)
    } else {
        ("invalid", None)
    };
    // An unknown field's name is at the end of the path already.
    let field = field.filter(|field| path.last().map(String::as_str) != Some(field));
    let parts = path.iter().map(String::as_str).chain(field);
    let pointer: String = parts.flat_map(|part| ["/".to_owned(), escape(part)]).collect();
    Invalid::new(pointer, code, message)
}

fn escape(token: &str) -> String {
    token.replace('~', "~0").replace('/', "~1")
}

/// Returns the pointer to a text with U+0000, which Postgres cannot store; to the object when a field's name has it.
///
/// The pointer is built on the way back from such a text: building one for each value would take time in proportion to the
/// square of the body's length.
fn find_nul(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => text.contains('\0').then(String::new),
        Value::Array(items) => items.iter().enumerate().find_map(|(n, item)| Some(format!("/{n}{}", find_nul(item)?))),
        Value::Object(fields) if fields.keys().any(|name| name.contains('\0')) => Some(String::new()),
        Value::Object(fields) => {
            fields.iter().find_map(|(name, value)| Some(format!("/{}{}", escape(name), find_nul(value)?)))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::instances::RawInstance;

    fn refused(body: &str) -> (Code, Vec<(String, &'static str)>) {
        let problem = parse::<RawInstance>(body.as_bytes()).expect_err(body);
        (problem.code, problem.errors.into_iter().map(|error| (error.pointer, error.code)).collect())
    }

    #[test]
    fn body_that_is_not_json_is_400_and_one_of_another_shape_422() {
        for body in [
            "",
            "{",
            "nope",
            r#"{"image":"a","image":"b"}"#,
            r#"{"image":"a","env":{"A":"1","\u0041":"2"}}"#,
            "{\"image\":\"a\"} x",
            "\u{feff}{}",
        ] {
            assert_eq!(refused(body).0, Code::MalformedRequest, "{body}");
        }
        for (body, pointer, code) in [
            ("{}", "/image", "required"),
            (r#"{"image":"a","colour":1}"#, "/colour", "unknown_field"),
            (r#"{"image":"a","cpu_millis":"many"}"#, "/cpu_millis", "invalid"),
            (r#"{"image":"a","cpu_millis":1e99}"#, "/cpu_millis", "invalid"),
            (r#"{"image":"a","ports":[{"container":1},{"host":2}]}"#, "/ports/1/container", "required"),
            (r#"{"image":"a","ports":[{"container":1,"x/y":2}]}"#, "/ports/0/x~1y", "unknown_field"),
            (r#"{"image":"a","env":{"A":"\u0000"}}"#, "/env/A", "invalid"),
            (r#"{"image":"a","command":["b",{"x/y":[0,"\u0000"]}]}"#, "/command/1/x~1y/1", "invalid"),
            (r#"{"image":"a","env":{"\u0000":"b"}}"#, "/env", "invalid"),
            (r#"{"image":"a","placement":["h1",{}]}"#, "/placement", "invalid"),
            (r#"{"image":"a","ports":[{"container":1},[80,0,"tcp"]]}"#, "/ports/1", "invalid"),
            (r#"[null,"a",null,{},null,null,null,[],{},null,null]"#, "", "invalid"),
        ] {
            let expected = (Code::ValidationFailed, vec![(pointer.to_owned(), code)]);
            assert_eq!(refused(body), expected, "{body}");
        }
    }
}
