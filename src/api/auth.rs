//! Key, then scope: before anything else of a request is looked at.

use std::{collections::HashMap, sync::Arc};

use actix_web::{
    Error, HttpMessage, HttpRequest, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method,
        header::{self, HeaderMap, HeaderName, HeaderValue},
    },
    middleware::Next,
    web,
};

use super::{Access, ApiState, error::ApiError, routes};
use crate::{
    core::identity::{Caller, IdentityError, IdentityService, rate_limit::Allowance},
    http::{
        problem::{Code, Problem},
        route,
    },
};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Authenticates and authorizes one request; handlers find the caller by `caller`.
///
/// # Errors
/// Those from inside. A refusal is a response, so that what is wrapped around it treats it like any other.
pub async fn middleware<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let Judged { verdict, allowance, stale } = authorize(&request).await;
    let mut response = match verdict {
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
    if stale {
        insert(headers, HeaderName::from_static("x-identity-stale"), "1");
    }
    Ok(response)
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Whether a request may go on, and what its answer has to tell.
struct Judged {
    /// The caller; `None` where none is needed, or nothing is served.
    verdict: Result<Option<Arc<Caller>>, ApiError>,
    allowance: Option<Allowance>,
    /// The key was accepted though the primary has not been heard of for a while.
    stale: bool,
}

async fn authorize(request: &ServiceRequest) -> Judged {
    let access = access(request);
    let unlimited = |verdict| Judged { verdict, allowance: None, stale: false };
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
    // Counted whatever becomes of it: a refusal costs as well.
    let allowance = state.limiter.count(&caller).await;
    let verdict = if allowance.is_some_and(|allowance| !allowance.allowed) {
        Err(Problem::new(Code::RateLimited, "the key asks too often; see Retry-After").into())
    } else {
        match access {
            Some(Access::Scope(scope)) if !caller.may(scope) => {
                Err(Problem::new(Code::Forbidden, format!("the key lacks the scope {scope}")).into())
            }
            Some(_) => Ok(Some(caller)),
            // For a handler without an entry in the table, nobody is the caller.
            None => Ok(None),
        }
    };
    Judged { verdict, allowance, stale: state.identity.is_stale() }
}

/// `None`: no such path, or not with this method; still only for those with a key.
fn access(request: &ServiceRequest) -> Option<Access> {
    thread_local! {
        static TABLE: HashMap<&'static str, Vec<(Method, Access)>> = routes().into_iter().fold(
            HashMap::new(),
            |mut table, route| {
                table.entry(route.path).or_default().push((route.method, route.access));
                table
            },
        );
    }
    let pattern = route::pattern(request.request())?;
    let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
    TABLE.with(|table| {
        let here = table.get(&*pattern)?;
        let exact = here.iter().find(|(known, _)| known == method).map(|(_, access)| *access);
        // A wrong method on a public path is for everybody to see.
        let all_public = here.iter().all(|(_, access)| *access == Access::Public);
        exact.or(all_public.then_some(Access::Public))
    })
}

fn presented(request: &HttpRequest) -> Option<String> {
    let headers = request.headers();
    if let Some(key) = headers.get(&X_API_KEY) {
        return key.to_str().ok().map(|key| key.trim().to_owned());
    }
    let authorization = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim().to_owned())
}

/// The caller that the middleware found.
pub fn caller(request: &HttpRequest) -> Arc<Caller> {
    request.extensions().get::<Arc<Caller>>().expect("every route but the public ones has a caller").clone()
}
