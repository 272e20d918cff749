//! `/health`: whether the process lives, and whether it can serve.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiState;
use crate::core::redis;

/// The process answers.
#[derive(Serialize, ToSchema)]
pub struct Live {
    status: LiveStatus,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LiveStatus {
    Live,
}

/// What the API stands on. A missing replica or Redis only makes it slower.
#[derive(Serialize, ToSchema)]
pub struct Ready {
    status: ReadyStatus,
    /// It answers, and takes writes.
    primary: bool,
    /// Absent when none is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<bool>,
    redis: bool,
}

/// Whether requests can be served; `ready` and `degraded` are answered 200.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReadyStatus {
    Ready,
    Degraded,
    Unavailable,
    Stopping,
}

#[utoipa::path(get, path = "/health/live", operation_id = "get_liveness", tag = "health", security(()),
    responses((status = 200, description = "The process answers", body = Live)))]
pub async fn live() -> HttpResponse {
    HttpResponse::Ok().json(Live { status: LiveStatus::Live })
}

#[utoipa::path(get, path = "/health/ready", operation_id = "get_readiness", tag = "health", security(()),
    responses((status = 200, description = "It can serve", body = Ready),
              (status = 503, description = "It cannot serve, or is stopping", body = Ready)))]
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
        HttpResponse::ServiceUnavailable().insert_header(("Retry-After", "1")).json(body)
    }
}
