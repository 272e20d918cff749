//! What is wrong with a request, with its place: so that all of it can be told at once.

use serde::Serialize;
use utoipa::ToSchema;

/// One thing that is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Invalid {
    /// A JSON pointer into the body (`/ports/0/host`), or `?name` for a query parameter, `:name` for a header.
    pub pointer: String,
    /// `required`, `invalid`, `out_of_range`, `too_long`, `duplicate`, `unknown_field`, `not_found`.
    pub code: &'static str,
    pub detail: String,
}

impl Invalid {
    pub fn new(pointer: impl Into<String>, code: &'static str, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), code, detail: detail.into() }
    }
}
