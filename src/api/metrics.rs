//! `/metrics`: the metrics of this process in Prometheus' text format.

use actix_web::{HttpResponse, web};

use super::ApiState;

/// Returns the metrics of this process.
#[utoipa::path(get, path = "/metrics", operation_id = "get_metrics", tag = "health", security(()),
    responses((status = 200, description = "The metrics of this process, in Prometheus' text format", body = String, content_type = "text/plain")))]
pub async fn show(state: web::Data<ApiState>) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body((state.metrics)())
}
