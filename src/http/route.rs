//! Which route a request is for, known before routing.

use std::rc::Rc;

use actix_web::{HttpMessage, HttpRequest};

/// What was found out: finding it tries the patterns one after the other.
struct Found(Option<Rc<str>>);

/// The route's pattern, `/instances/{id}` for instance; `None`: there is no such path.
///
/// By the decoded path, as the router does it. actix's own `match_pattern` takes the path as sent, and so finds nothing
/// for `/%69nstances`, which the router serves.
pub fn pattern(request: &HttpRequest) -> Option<Rc<str>> {
    if let Some(Found(pattern)) = request.extensions().get() {
        return pattern.clone();
    }
    let pattern = request.resource_map().match_pattern(request.match_info().as_str()).map(Rc::from);
    request.extensions_mut().insert(Found(pattern.clone()));
    pattern
}
