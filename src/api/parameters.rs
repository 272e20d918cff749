//! Parameters that several routes take, as the OpenAPI document describes them. Handlers read them from the path, from
//! the headers and by `Query`; these types are for `#[utoipa::path(params(…))]` only.

#![allow(dead_code, reason = "no value is made of these")]

use actix_web::HttpRequest;
use utoipa::IntoParams;
use uuid::Uuid;

use crate::{
    core::{
        id::{TenantId, parse_uuid},
        identity::{Caller, Scope},
    },
    http::{problem::Problem, query::Query},
};

/// `/{id}`
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct ById {
    /// The resource's id. An id that is not a UUID is answered 404.
    id: Uuid,
}

/// A request that may be repeated.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct Repeatable {
    /// Makes the request safe to repeat: visible ASCII characters, kept for 24 h.
    #[param(rename = "Idempotency-Key", required = false, value_type = String, min_length = 1, max_length = 255,
            pattern = "^[!-~]+$")]
    idempotency_key: Option<String>,
}

/// One page of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OnePage {
    /// How many items at most: 50 when absent or 0, 500 when above.
    #[param(required = false, value_type = u64, minimum = 0, default = 50)]
    limit: Option<u64>,
    /// The `next_cursor` of the page before.
    #[param(required = false, value_type = String)]
    cursor: Option<String>,
    /// The tenant whose items are listed: the caller's when absent. Only an admin may name another.
    #[param(required = false, value_type = Uuid)]
    tenant_id: Option<Uuid>,
}

/// The end of a wait.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Timeout {
    /// How long `wait` may hold the answer back, in seconds; cut at 60.
    #[param(required = false, value_type = f64, minimum = 0, default = 30)]
    timeout: Option<f64>,
}

/// Returns the id in the path.
///
/// # Errors
/// `not_found` when it is no UUID: it names nothing.
pub(super) fn path_id(request: &HttpRequest) -> Result<Uuid, Problem> {
    let text = request.match_info().get("id").unwrap_or_default();
    parse_uuid(text).map_err(|_| Problem::not_found())
}

/// Takes the tenant whose items a list shows: the caller's, or for an admin any tenant.
pub(super) fn take_tenant(query: &mut Query, caller: &Caller) -> TenantId {
    let named = query.take_parsed("tenant_id", "must be a tenant's id", |text| text.parse::<TenantId>().ok());
    match named {
        Some(tenant) if tenant == caller.tenant || caller.may(Scope::Admin) => tenant,
        Some(_) => {
            query.refuse("tenant_id", "invalid", "only an admin may name another tenant");
            caller.tenant
        }
        None => caller.tenant,
    }
}
