//! JSON bodies: at most 1 MiB within 10 s, of the right media type, told apart as unreadable (400) or wrong (422).

use std::time::Duration;

use actix_web::{HttpRequest, http::header, web};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    problem::{Code, Problem},
    strict::{Objects, Unambiguous},
};
use crate::core::invalid::Invalid;

pub const MAX_BODY: usize = 1024 * 1024;
/// Of a body that is too large this much is read and thrown away, so that the client hears the answer.
const MAX_DRAINED: usize = 16 * MAX_BODY;
const DEADLINE: Duration = Duration::from_secs(10);

/// A body as sent, and as its type.
#[derive(Debug)]
pub struct Json<T> {
    pub sent: Value,
    pub value: T,
}

/// Reads the body.
///
/// # Errors
/// A problem: 400, 413, 415 or 422.
pub async fn json<T: DeserializeOwned>(request: &HttpRequest, payload: web::Payload) -> Result<Json<T>, Problem> {
    let is_json =
        request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
            value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
        });
    let bytes = tokio::time::timeout(DEADLINE, read(payload))
        .await
        .map_err(|_| Problem::new(Code::MalformedRequest, "the body did not arrive within 10 s"))??;
    if !is_json {
        return Err(Problem::new(Code::UnsupportedMediaType, "send Content-Type: application/json"));
    }
    parse(&bytes)
}

async fn read(mut payload: web::Payload) -> Result<Vec<u8>, Problem> {
    let (mut bytes, mut total) = (Vec::new(), 0usize);
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| Problem::new(Code::MalformedRequest, "the body broke off"))?;
        total += chunk.len();
        if total <= MAX_BODY {
            bytes.extend_from_slice(&chunk);
        } else if total > MAX_DRAINED {
            break;
        }
    }
    if total > MAX_BODY {
        return Err(Problem::new(Code::PayloadTooLarge, format!("at most {MAX_BODY} bytes")));
    }
    Ok(bytes)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<Json<T>, Problem> {
    let Unambiguous(sent) = serde_json::from_slice(bytes).map_err(|error| {
        let what = if error.is_data() { "gives a name twice" } else { "is not JSON" };
        let place = format!("line {} column {}", error.line(), error.column());
        Problem::new(Code::MalformedRequest, format!("the body {what}: {place}"))
    })?;
    if let Some(pointer) = find_nul(&sent, String::new()) {
        return Err(Problem::invalid(vec![Invalid::new(pointer, "invalid", "must not contain U+0000")]));
    }
    let value = serde_path_to_error::deserialize(Objects(&sent)).map_err(|error| {
        // It shows an index as `[1]`.
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

/// serde tells of a missing or unknown field at its parent; clients want the field.
fn wrong_shape(path: &[String], message: &str) -> Invalid {
    let field = message.split('`').nth(1);
    let (code, field) = if message.starts_with("missing field") {
        ("required", field)
    } else if message.starts_with("unknown field") {
        ("unknown_field", field)
    } else {
        ("invalid", None)
    };
    // With a field's own name at the end of the path already, it is not repeated.
    let field = field.filter(|field| path.last().map(String::as_str) != Some(field));
    let parts = path.iter().map(String::as_str).chain(field);
    let pointer: String = parts.flat_map(|part| ["/".to_owned(), escape(part)]).collect();
    Invalid::new(pointer, code, message)
}

fn escape(token: &str) -> String {
    token.replace('~', "~0").replace('/', "~1")
}

/// Postgres has no U+0000 in texts.
fn find_nul(value: &Value, at: String) -> Option<String> {
    match value {
        Value::String(text) => text.contains('\0').then_some(at),
        Value::Array(items) => items.iter().enumerate().find_map(|(n, item)| find_nul(item, format!("{at}/{n}"))),
        Value::Object(fields) => fields.iter().find_map(|(key, value)| {
            if key.contains('\0') {
                return Some(at.clone());
            }
            find_nul(value, format!("{at}/{}", escape(key)))
        }),
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
    fn unreadable_is_400_and_wrong_is_422_with_its_place() {
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
            (r#"{"image":"a","placement":["h1",{}]}"#, "/placement", "invalid"),
            (r#"{"image":"a","ports":[{"container":1},[80,0,"tcp"]]}"#, "/ports/1", "invalid"),
            (r#"[null,"a",null,{},null,null,null,[],{},null,null]"#, "", "invalid"),
        ] {
            let expected = (Code::ValidationFailed, vec![(pointer.to_owned(), code)]);
            assert_eq!(refused(body), expected, "{body}");
        }
    }
}
