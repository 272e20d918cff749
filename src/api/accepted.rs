//! The answer 202: always `{"job_id","instance"}`, where to look, and when.

use actix_web::{HttpResponse, http::header};
use serde::Serialize;
use utoipa::ToSchema;

use super::instances::Instance;
use crate::core::{id::JobId, instances::store::InstanceRecord};

/// What was accepted: committed before this was sent.
#[derive(Serialize, ToSchema)]
pub struct Accepted {
    #[schema(value_type = uuid::Uuid)]
    job_id: JobId,
    instance: Instance,
}

pub fn accepted(job: JobId, instance: InstanceRecord, replayed: bool) -> HttpResponse {
    let mut response = HttpResponse::Accepted();
    response.insert_header((header::LOCATION, format!("/instances/{}", instance.id)));
    response.insert_header((header::RETRY_AFTER, "1"));
    if replayed {
        response.insert_header(("Idempotent-Replayed", "true"));
    }
    response.json(Accepted { job_id: job, instance: instance.into() })
}
