//! Finds the route of a request before actix routes it: logs, metrics and authorization need it outside of the handlers.

use std::rc::Rc;

use actix_web::{HttpMessage, HttpRequest};

/// The pattern of a request, stored in its extensions: finding it means to try one pattern after the other.
struct CachedPattern(Option<Rc<str>>);

/// Returns the pattern of the request's route, for instance `/instances/{id}`; `None` when no route has this path.
///
/// The decoded path decides, as in actix's router. actix's own `HttpRequest::match_pattern` takes the path as it was sent,
/// and so finds nothing for `/%69nstances`, which the router serves.
pub fn pattern(request: &HttpRequest) -> Option<Rc<str>> {
    if let Some(CachedPattern(pattern)) = request.extensions().get() {
        return pattern.clone();
    }
    let pattern = request.resource_map().match_pattern(request.match_info().as_str()).map(Rc::from);
    request.extensions_mut().insert(CachedPattern(pattern.clone()));
    pattern
}
