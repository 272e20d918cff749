//! Which route a request is for, known before routing.

use actix_web::dev::ServiceRequest;

/// The route's pattern, `/instances/{id}` for instance; `None`: there is no such path.
///
/// By the decoded path, as the router does it. actix's own `match_pattern` takes the path as sent, and so finds nothing
/// for `/%69nstances`, which the router serves.
pub fn pattern(request: &ServiceRequest) -> Option<String> {
    request.resource_map().match_pattern(request.match_info().as_str())
}
