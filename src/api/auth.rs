//! Authentication and authorization: a request's key, its rate limit and its scope are checked before anything else is
//! read.
//!
//! Every route has an entry in `api::routes` that says which scope it needs. A path without an entry, or a method that
//! the path does not have, is answered only to callers with a valid key. A refusal is a response and not an error, so
//! that the middleware around this one treats it like any other.

use std::sync::Arc;

use actix_web::{
    Error, HttpMessage, HttpRequest, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::header::{self, HeaderMap, HeaderName, HeaderValue},
    middleware::Next,
    web,
};

use super::{
    access::{Access, AccessTable},
    error::ApiError,
    state::ApiState,
};
use crate::{
    core::identity::{Caller, IdentityError, IdentityService, rate_limit::Allowance},
    http::{
        problem::{Code, Problem},
        request_log, route,
    },
};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Authenticates and authorizes one request. Handlers get the caller from `caller`.
///
/// # Errors
/// Those of the wrapped service.
pub async fn middleware<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let Authorization { result, allowance, is_stale } = authorize(&request).await;
    let mut response = match result {
        Ok(caller) => {
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            next.call(request).await?.map_into_left_body()
        }
        Err(refusal) => request.into_response(refusal.error_response()).map_into_right_body(),
    };
    let headers = response.headers_mut();
    if let Some(allowance) = allowance {
        let whole = |duration: std::time::Duration| duration.as_secs_f64().ceil().max(1.0);
        for (name, value) in [
            ("ratelimit-limit", allowance.limit.to_string()),
            ("ratelimit-remaining", allowance.remaining.to_string()),
            ("ratelimit-reset", whole(allowance.reset).to_string()),
            ("ratelimit", format!("\"key\";r={};t={}", allowance.remaining, whole(allowance.reset))),
            ("ratelimit-policy", format!("\"key\";q={};w={}", allowance.limit, whole(allowance.window))),
        ] {
            insert(headers, HeaderName::from_static(name), &value);
        }
        if !allowance.allowed {
            insert(headers, header::RETRY_AFTER, &whole(allowance.retry_after).to_string());
        }
    }
    if is_stale {
        insert(headers, HeaderName::from_static("x-identity-stale"), "1");
    }
    Ok(response)
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// The decision about a request, and the values of its response headers.
struct Authorization {
    /// The caller; `None` where none is needed, or for a path or method that does not exist.
    result: Result<Option<Arc<Caller>>, ApiError>,
    allowance: Option<Allowance>,
    /// The key was accepted while the primary could not be read for a while; it may have been revoked.
    is_stale: bool,
}

async fn authorize(request: &ServiceRequest) -> Authorization {
    let access = access(request);
    let unlimited = |result| Authorization { result, allowance: None, is_stale: false };
    if access == Some(Access::Public) {
        return unlimited(Ok(None));
    }
    let state = request.app_data::<web::Data<ApiState>>().expect("configured together with the routes").clone();
    let Some(presented) = presented(request.request()) else {
        return unlimited(Err(ApiError::Identity(IdentityError::Unauthenticated)));
    };
    let caller = match state.identity.verify(&presented).await {
        Ok(caller) => caller,
        Err(error) => return unlimited(Err(ApiError::Identity(error))),
    };
    request_log::record_caller(caller.tenant, caller.key);
    // The request is counted before its scope is checked, so that refused requests use the allowance up too.
    let allowance = state.limiter.count(&caller).await;
    let result = if allowance.is_some_and(|allowance| !allowance.allowed) {
        Err(Problem::new(Code::RateLimited, "the rate limit of the key is used up; see Retry-After").into())
    } else {
        match access {
            Some(Access::Scope(scope)) if !caller.may(scope) => {
                Err(Problem::new(Code::Forbidden, format!("the key lacks the scope {scope}")).into())
            }
            Some(_) => Ok(Some(caller)),
            // A handler without an entry in the table gets no caller.
            None => Ok(None),
        }
    };
    Authorization { result, allowance, is_stale: state.identity.is_stale() }
}

/// Returns the access rule of the request's route; `None`: there is no such path, or it does not have this method.
fn access(request: &ServiceRequest) -> Option<Access> {
    let table = request.app_data::<web::Data<AccessTable>>().expect("configured together with the routes");
    table.get(&route::pattern(request.request())?, request.method())
}

/// Returns the key that the request presents, from `X-API-Key` or `Authorization: Bearer`.
fn presented(request: &HttpRequest) -> Option<String> {
    let headers = request.headers();
    if let Some(key) = headers.get(&X_API_KEY) {
        return key.to_str().ok().map(|key| key.trim().to_owned());
    }
    let authorization = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim().to_owned())
}

/// Returns the caller that the middleware authenticated.
pub fn caller(request: &HttpRequest) -> Arc<Caller> {
    request.extensions().get::<Arc<Caller>>().expect("every route but the public ones has a caller").clone()
}
