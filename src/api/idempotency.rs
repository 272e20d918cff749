//! The `Idempotency-Key` header, and what requests with the same key are compared by.

use actix_web::HttpRequest;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::instances::path_id;
use crate::{
    core::{idempotency::IdempotencyKey, invalid::Invalid},
    http::{problem::Problem, route},
};

const NAME: &str = "Idempotency-Key";

/// The header's key, if there is one. `body` is compared as JSON: the order of fields does not matter.
///
/// # Errors
/// 422 unless it is 1 to 255 visible ASCII characters.
pub fn key(request: &HttpRequest, body: &Value) -> Result<Option<IdempotencyKey>, Problem> {
    let mut values = request.headers().get_all(NAME);
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    if values.next().is_some() || !(1..=255).contains(&text.len()) || !text.bytes().all(|b| b.is_ascii_graphic()) {
        let detail = "must be 1 to 255 visible ASCII characters, once";
        return Err(Problem::invalid(vec![Invalid::new(format!(":{NAME}"), "invalid", detail)]));
    }
    // serde_json's maps are sorted, so equal documents are equal texts.
    let request_hash = Sha256::digest(body.to_string().as_bytes()).into();
    Ok(Some(IdempotencyKey { key: text.to_owned(), route: route(request), request_hash }))
}

/// The method and the path, in one spelling: a path may be sent with percent-encoding, and its id in upper case.
fn route(request: &HttpRequest) -> String {
    let pattern = route::pattern(request).unwrap_or_default();
    let path = path_id(request).map_or_else(|_| pattern.to_string(), |id| pattern.replace("{id}", &id.to_string()));
    format!("{} {path}", request.method())
}
