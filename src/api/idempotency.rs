//! The `Idempotency-Key` header; what it means is in `core::idempotency`.

use actix_web::HttpRequest;
use serde_json::Value;

use super::parameters::path_id;
use crate::{
    core::{idempotency::IdempotencyKey, invalid::Invalid},
    http::{problem::Problem, route},
};

const NAME: &str = "Idempotency-Key";

/// Reads the header's key, if there is one. `body`: the request's body, by which requests with one key are compared.
///
/// # Errors
/// 422 unless the header is sent once and has 1 to 255 visible ASCII characters.
pub fn key(request: &HttpRequest, body: &Value) -> Result<Option<IdempotencyKey>, Problem> {
    let mut values = request.headers().get_all(NAME);
    let Some(value) = values.next() else { return Ok(None) };
    // Neither a value that is not ASCII nor a second one is a key.
    let text = value.to_str().ok().filter(|_| values.next().is_none()).unwrap_or_default();
    IdempotencyKey::parse(text, route(request), body)
        .map(Some)
        .map_err(|error| Problem::invalid(vec![Invalid::new(format!(":{NAME}"), "invalid", error.to_string())]))
}

/// Returns method and path in one spelling: a path may be sent with percent-encoding, and its id in upper case.
fn route(request: &HttpRequest) -> String {
    let pattern = route::pattern(request).unwrap_or_default();
    let path = path_id(request).map_or_else(|_| pattern.to_string(), |id| pattern.replace("{id}", &id.to_string()));
    format!("{} {path}", request.method())
}
