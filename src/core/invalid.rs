//! One thing that is wrong with a request, with its place: parsers collect them, and the answer 422 lists them all.

use serde::Serialize;
use utoipa::{
    ToSchema,
    openapi::{Object, ObjectBuilder, Type},
};

/// Every code of an `Invalid`.
pub const CODES: [&str; 7] =
    ["required", "invalid", "out_of_range", "too_long", "duplicate", "unknown_field", "not_found"];

fn codes() -> Object {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(CODES)).build()
}

/// One thing that is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Invalid {
    /// A JSON pointer into the body (`/ports/0/host`), or `?name` for a query parameter, `:name` for a header.
    pub pointer: String,
    /// The kind of mistake, from the closed set `CODES`.
    #[schema(schema_with = codes)]
    pub code: &'static str,
    /// A description of a valid value, for people.
    pub detail: String,
}

impl Invalid {
    /// Makes an entry. `code`: one of `CODES`.
    pub fn new(pointer: impl Into<String>, code: &'static str, detail: impl Into<String>) -> Self {
        debug_assert!(CODES.contains(&code), "{code} is not documented");
        Self { pointer: pointer.into(), code, detail: detail.into() }
    }
}
