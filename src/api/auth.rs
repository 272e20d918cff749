//! Key, then scope: before anything else of a request is looked at.

use actix_web::{
    Error, HttpMessage, HttpRequest, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{Method, header},
    middleware::Next,
    web,
};

use super::{Access, ApiState, error::ApiError, routes};
use crate::{
    core::identity::{Caller, IdentityError, IdentityService},
    http::{
        problem::{Code, Problem},
        route,
    },
};

/// Authenticates and authorizes one request; handlers find the caller by `caller`.
///
/// # Errors
/// Those from inside. A refusal is a response, so that what is wrapped around it treats it like any other.
pub async fn middleware<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    match judge(&request).await {
        Ok(caller) => {
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            Ok(next.call(request).await?.map_into_left_body())
        }
        Err(refusal) => Ok(request.into_response(refusal.error_response()).map_into_right_body()),
    }
}

/// The caller; `None` where none is needed, or nothing is served.
async fn judge(request: &ServiceRequest) -> Result<Option<Caller>, ApiError> {
    let access = access(request);
    if access == Some(Access::Public) {
        return Ok(None);
    }
    let state = request.app_data::<web::Data<ApiState>>().expect("configured together with the routes").clone();
    let presented = presented(request.request()).ok_or(ApiError::Identity(IdentityError::Unauthenticated))?;
    let caller = state.identity.verify(&presented).await.map_err(ApiError::Identity)?;
    if let Some(Access::Scope(scope)) = access
        && !caller.may(scope)
    {
        return Err(Problem::new(Code::Forbidden, format!("the key lacks the scope {scope}")).into());
    }
    // For a handler without an entry in the table, nobody is the caller.
    Ok(access.map(|_| caller))
}

/// `None`: no such path, or not with this method; still only for those with a key.
fn access(request: &ServiceRequest) -> Option<Access> {
    thread_local! {
        static TABLE: Vec<(Method, &'static str, Access)> =
            routes().into_iter().map(|route| (route.method, route.path, route.access)).collect();
    }
    let pattern = route::pattern(request)?;
    let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
    TABLE.with(|table| {
        let mut here = table.iter().filter(|(_, path, _)| *path == pattern).peekable();
        // A wrong method on a public path is for everybody to see.
        let all_public = here.clone().all(|(.., access)| *access == Access::Public);
        here.peek()?;
        let exact = here.find(|(known, ..)| known == method).map(|(.., access)| *access);
        exact.or(all_public.then_some(Access::Public))
    })
}

fn presented(request: &HttpRequest) -> Option<String> {
    let headers = request.headers();
    if let Some(key) = headers.get("X-API-Key") {
        return key.to_str().ok().map(|key| key.trim().to_owned());
    }
    let authorization = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim().to_owned())
}

/// The caller that the middleware found.
pub fn caller(request: &HttpRequest) -> Caller {
    request.extensions().get::<Caller>().expect("every route but the public ones has a caller").clone()
}
