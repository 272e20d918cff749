//! `/openapi.json`: the OpenAPI 3.1 document, generated from the attributes of the handlers and of their types.
//!
//! `docs/openapi.json` is the committed copy. `tests/openapi` compares the two, and refuses a breaking change that the
//! changelog does not name.

use actix_web::HttpResponse;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
};

use super::{health, instances, jobs, keys, metrics, networks};
use crate::http::problem::ProblemBody;

/// The generator of the document.
#[derive(OpenApi)]
#[openapi(
    info(title = "app", description = "Turns POST /instances into a running, networked container."),
    paths(
        instances::create, instances::list, instances::show, instances::delete,
        jobs::list, jobs::show,
        networks::list, networks::show,
        keys::myself, keys::create, keys::list, keys::revoke, keys::show, keys::patch, keys::rotate,
        health::live, health::ready, metrics::show, show,
    ),
    components(schemas(ProblemBody)),
    security(("api_key" = []), ("bearer" = [])),
    modifiers(&SecuritySchemes),
)]
pub struct Document;

/// Declares the two headers that a key may be sent in.
struct SecuritySchemes;

impl Modify for SecuritySchemes {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_with(Default::default);
        let header = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
        components.add_security_scheme("api_key", header);
        let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        components.add_security_scheme("bearer", bearer);
    }
}

/// Returns this document.
#[utoipa::path(get, path = "/openapi.json", operation_id = "get_openapi", tag = "health", security(()),
    responses((status = 200, description = "This document, in OpenAPI 3.1", body = Object)))]
pub async fn show() -> HttpResponse {
    HttpResponse::Ok().json(Document::openapi())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::routes;

    #[test]
    fn document_has_exactly_the_routes_of_the_table() {
        let document = serde_json::to_value(Document::openapi()).expect("serializes");
        let paths = document["paths"].as_object().expect("paths");
        let documented: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().expect("a path item").keys();
                methods.map(|method| (path.clone(), method.to_uppercase())).collect::<Vec<_>>()
            })
            .collect();
        let served: BTreeSet<(String, String)> =
            routes().iter().map(|route| (route.path.to_owned(), route.method.to_string())).collect();
        assert_eq!(documented, served);
        assert_eq!(document["openapi"], "3.1.0");
    }

    #[test]
    fn every_operation_that_needs_a_key_documents_its_errors() {
        let document = serde_json::to_value(Document::openapi()).expect("serializes");
        for route in routes().iter().filter(|route| route.access != crate::api::Access::Public) {
            let method = route.method.as_str().to_lowercase();
            let responses = &document["paths"][route.path][&method]["responses"];
            assert!(responses["default"].is_object(), "{method} {}", route.path);
        }
    }
}
