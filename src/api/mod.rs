//! The HTTP API: the whole route table on one screen, and the server around it.
//!
//! Order of judgement: key, scope, existence, query, body. A handler parses, asks `core`, and shows; it decides nothing.
//! `docs/api.md` is the contract; `/openapi.json` is generated from here, and a test compares it with the table.

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
pub use state::ApiState;

use access::AccessTable;

use crate::{core::identity::Scope, http::problem::Problem};

/// One route.
pub struct Route {
    pub method: Method,
    pub path: &'static str,
    pub access: Access,
    handler: fn() -> Handler,
}

/// Every route there is.
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

/// HEAD is GET without the body, which the server leaves out by itself.
fn get() -> Handler {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

/// Adds all routes, behind the question whose key it is.
pub fn configure(config: &mut ServiceConfig, state: &web::Data<ApiState>) {
    let table = routes().into_iter().map(|route| (route.path, route.method, route.access));
    config.app_data(web::Data::new(AccessTable::new(table)));
    config.app_data(state.clone());
    config.service(open().wrap(from_fn(auth::middleware)));
}

/// All routes, with nobody at the door. A handler needs a `Caller` in its request's extensions, and `ApiState`.
pub fn open() -> Routes {
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
