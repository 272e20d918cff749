//! `/health/live` and `/health/ready`, for supervisors and load balancers.
//!
//! Liveness says only that the process answers. Readiness is 200 while requests can be served, which needs the primary;
//! a missing replica or Redis makes requests slower and is reported as `degraded`, also with 200. From the request to
//! stop on, readiness is 503, so that a load balancer sends no new requests while those in flight finish.

use actix_web::{HttpResponse, http::header, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiState;
use crate::core::redis;

/// The body of `/health/live`.
#[derive(Serialize, ToSchema)]
pub struct Live {
    status: LiveStatus,
}

/// The status of a process that answers; there is no other one.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LiveStatus {
    /// The process answers.
    Live,
}

/// The body of `/health/ready`: the servers that the API uses. Without the replica or Redis it is slower; without the
/// primary it cannot serve.
#[derive(Serialize, ToSchema)]
pub struct Ready {
    status: ReadyStatus,
    /// Whether the primary answers and accepts writes.
    primary: bool,
    /// Whether the replica answers; absent when none is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<bool>,
    /// Whether Redis answers.
    redis: bool,
}

/// Whether requests can be served: `ready` and `degraded` are answered 200, the others 503.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReadyStatus {
    /// All configured servers answer.
    Ready,
    /// Requests are served, though the replica or Redis does not answer.
    Degraded,
    /// The primary does not answer or takes no writes.
    Unavailable,
    /// A stop of the process was requested.
    Stopping,
}

/// Returns whether the process answers.
#[utoipa::path(get, path = "/health/live", operation_id = "get_liveness", tag = "health", security(()),
    responses((status = 200, description = "The process answers", body = Live)))]
pub async fn live() -> HttpResponse {
    HttpResponse::Ok().json(Live { status: LiveStatus::Live })
}

/// Returns whether requests can be served.
#[utoipa::path(get, path = "/health/ready", operation_id = "get_readiness", tag = "health", security(()),
    responses((status = 200, description = "Requests can be served", body = Ready),
              (status = 503, description = "Requests cannot be served, or the process is stopping", body = Ready)))]
pub async fn ready(state: web::Data<ApiState>) -> HttpResponse {
    let (db, redis) = tokio::join!(state.db.health(), redis::answers(state.notifier.client()));
    let status = match (state.stopping.is_cancelled(), db.primary, db.replica != Some(false) && redis) {
        (true, ..) => ReadyStatus::Stopping,
        (_, false, _) => ReadyStatus::Unavailable,
        (_, _, false) => ReadyStatus::Degraded,
        (_, _, true) => ReadyStatus::Ready,
    };
    let body = Ready { status, primary: db.primary, replica: db.replica, redis };
    if matches!(status, ReadyStatus::Ready | ReadyStatus::Degraded) {
        HttpResponse::Ok().json(body)
    } else {
        HttpResponse::ServiceUnavailable().insert_header((header::RETRY_AFTER, "1")).json(body)
    }
}
