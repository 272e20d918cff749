//! `/health`: whether the process lives, and whether it can serve.

use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiState;
use crate::core::redis;

/// The process answers.
#[derive(Serialize, ToSchema)]
pub struct Live {
    status: &'static str,
}

/// What the API stands on. A missing replica or Redis only makes it slower.
#[derive(Serialize, ToSchema)]
pub struct Ready {
    /// `ready`, `degraded`, `unavailable` or `stopping`.
    status: &'static str,
    /// It answers, and takes writes.
    primary: bool,
    /// Absent when none is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<bool>,
    redis: bool,
}

#[utoipa::path(get, path = "/health/live", tag = "health", security(()), responses((status = 200, body = Live)))]
pub async fn live() -> HttpResponse {
    HttpResponse::Ok().json(Live { status: "live" })
}

#[utoipa::path(get, path = "/health/ready", tag = "health", security(()),
    responses((status = 200, body = Ready), (status = 503, body = Ready)))]
pub async fn ready(state: web::Data<ApiState>) -> HttpResponse {
    let (db, redis) = tokio::join!(state.db.health(), redis::answers(state.bell.client()));
    let status = match (state.stopping.is_cancelled(), db.primary, db.replica != Some(false) && redis) {
        (true, ..) => "stopping",
        (_, false, _) => "unavailable",
        (_, _, false) => "degraded",
        (_, _, true) => "ready",
    };
    let body = Ready { status, primary: db.primary, replica: db.replica, redis };
    if matches!(status, "ready" | "degraded") {
        HttpResponse::Ok().json(body)
    } else {
        HttpResponse::ServiceUnavailable().insert_header(("Retry-After", "1")).json(body)
    }
}
