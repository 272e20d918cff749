//! The HTTP API: the table of all routes, and the handlers behind it in one file per resource.
//!
//! A request passes `auth` (key, rate limit, scope), then its handler, which checks in this order: whether the resource
//! exists (404), the query, the body. A handler turns the request into types, calls a service or a store of `core`, and
//! turns the record into a view; it contains no rules of its own. `docs/api.md` is the contract. `docs` generates
//! `/openapi.json` from the handlers; a test compares it with the table below.

mod access;
mod auth;
pub mod docs;
mod error;
mod health;
mod idempotency;
mod instances;
mod jobs;
mod keys;
mod metrics;
mod networks;
mod parameters;
mod state;
pub mod wait;

use actix_web::{
    Route as Handler, Scope as Routes, guard,
    http::Method,
    middleware::from_fn,
    web::{self, ServiceConfig},
};

pub use access::Access;
pub use state::{ApiState, InstanceWatch, JobWatch};

use access::AccessTable;

use crate::{core::identity::Scope, http::problem::Problem};

/// One operation of the API.
pub struct Route {
    /// The method; GET also serves HEAD.
    pub method: Method,
    /// The pattern of the path, for instance `/instances/{id}`.
    pub path: &'static str,
    /// The callers that it is open to.
    pub access: Access,
    handler: fn() -> Handler,
}

/// Returns the table of all routes.
#[rustfmt::skip]
pub fn routes() -> Vec<Route> {
    use Access::{Key, Public, Scope as Needs};
    use Scope::{InstancesRead, InstancesWrite, KeysRead, KeysWrite, NetworksRead};
    let route = |method, path, access, handler| Route { method, path, access, handler };
    vec![
        route(Method::POST,   "/instances",      Needs(InstancesWrite), || web::post().to(instances::create)),
        route(Method::GET,    "/instances",      Needs(InstancesRead),  || get().to(instances::list)),
        route(Method::GET,    "/instances/{id}", Needs(InstancesRead),  || get().to(instances::show)),
        route(Method::DELETE, "/instances/{id}", Needs(InstancesWrite), || web::delete().to(instances::delete)),
        route(Method::GET,    "/jobs",           Needs(InstancesRead),  || get().to(jobs::list)),
        route(Method::GET,    "/jobs/{id}",      Needs(InstancesRead),  || get().to(jobs::show)),
        route(Method::GET,    "/networks",       Needs(NetworksRead),   || get().to(networks::list)),
        route(Method::GET,    "/networks/{id}",  Needs(NetworksRead),   || get().to(networks::show)),
        route(Method::GET,    "/keys/self",      Key,                   || get().to(keys::myself)),
        route(Method::POST,   "/keys",           Needs(KeysWrite),      || web::post().to(keys::create)),
        route(Method::GET,    "/keys",           Needs(KeysRead),       || get().to(keys::list)),
        route(Method::GET,    "/keys/{id}",      Needs(KeysRead),       || get().to(keys::show)),
        route(Method::PATCH,  "/keys/{id}",      Needs(KeysWrite),      || web::patch().to(keys::patch)),
        route(Method::DELETE, "/keys/{id}",      Needs(KeysWrite),      || web::delete().to(keys::revoke)),
        route(Method::POST,   "/keys/{id}/rotate", Needs(KeysWrite),    || web::post().to(keys::rotate)),
        route(Method::GET,    "/health/live",    Public,                || get().to(health::live)),
        route(Method::GET,    "/health/ready",   Public,                || get().to(health::ready)),
        route(Method::GET,    "/metrics",        Public,                || get().to(metrics::show)),
        route(Method::GET,    "/openapi.json",   Public,                || get().to(docs::show)),
    ]
}

/// Returns a route for GET and HEAD; actix leaves the body out of a response to HEAD.
fn get() -> Handler {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

/// Adds all routes to a server, behind authentication and authorization.
pub fn configure(config: &mut ServiceConfig, state: &web::Data<ApiState>) {
    let table = routes().into_iter().map(|route| (route.path, route.method, route.access));
    config.app_data(web::Data::new(AccessTable::new(table)));
    config.app_data(state.clone());
    config.service(unauthenticated_routes().wrap(from_fn(auth::middleware)));
}

/// Returns all routes without authentication. Their handlers find `ApiState` in the app's data and the `Caller` in the
/// request's extensions. Another path is answered `not_found`, another method `method_not_allowed` with `Allow`.
pub fn unauthenticated_routes() -> Routes {
    let mut scope = web::scope("");
    let mut paths: Vec<&'static str> = Vec::new();
    let routes = routes();
    for path in routes.iter().map(|route| route.path) {
        if paths.contains(&path) {
            continue;
        }
        paths.push(path);
        let methods: Vec<&Route> = routes.iter().filter(|route| route.path == path).collect();
        let allow = methods
            .iter()
            .map(|route| route.method.as_str())
            .collect::<Vec<_>>()
            .join(", ")
            .replace("GET", "GET, HEAD");
        let resource = methods.iter().fold(web::resource(path), |resource, route| resource.route((route.handler)()));
        scope = scope.service(resource.default_service(web::to(move || {
            let problem = Problem::method_not_allowed(allow.clone());
            async move { Err::<&str, _>(problem) }
        })));
    }
    scope.default_service(web::to(|| async { Err::<&str, _>(Problem::not_found()) }))
}
