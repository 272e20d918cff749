//! Parameters that several routes take, as the OpenAPI document describes them.
//!
//! The types are for `#[utoipa::path(params(…))]` only; handlers read the values from the path, from the headers and by
//! `Query`.

#![allow(dead_code, reason = "the types describe parameters; no value of them is built")]

use utoipa::IntoParams;
use uuid::Uuid;

/// The id in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct ById {
    /// The resource's id. An id that is not a UUID is answered 404.
    id: Uuid,
}

/// The header of a request that may be repeated.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct Repeatable {
    /// Makes the request safe to repeat: for 24 h, a request with the same key and body is answered like the first one and
    /// changes nothing. Visible ASCII characters.
    #[param(rename = "Idempotency-Key", required = false, value_type = String, min_length = 1, max_length = 255,
            pattern = "^[!-~]+$")]
    idempotency_key: Option<String>,
}

/// The parameters of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OnePage {
    /// Largest number of items: 50 when absent or 0; a number above 500 counts as 500.
    #[param(required = false, value_type = u64, minimum = 0, default = 50)]
    limit: Option<u64>,
    /// The `next_cursor` of the previous page; absent for the first page.
    #[param(required = false, value_type = String)]
    cursor: Option<String>,
    /// The tenant whose items are listed: the caller's when absent. Only an admin may name another.
    #[param(required = false, value_type = Uuid)]
    tenant_id: Option<Uuid>,
}

/// The time-out of a wait.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Timeout {
    /// How long `wait` may delay the answer, in seconds; a number above 60 counts as 60.
    #[param(required = false, value_type = f64, minimum = 0, default = 30)]
    timeout: Option<f64>,
}
