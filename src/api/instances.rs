//! `/instances`: creates, lists, shows and deletes instances.
//!
//! A handler parses the request, calls `InstanceService`, and turns the record into the view that clients see. The service
//! commits and notifies; nothing is decided here but the order of checks: existence (404) comes before query and body.

use std::collections::BTreeMap;

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, ETag, EntityTag, Header, IfNoneMatch},
    web,
};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{
    ApiState,
    auth::caller,
    error::ApiError,
    idempotency,
    parameters::{ById, OnePage, Repeatable, Timeout, path_id, take_tenant},
    wait,
};
use crate::{
    core::{
        id::{HostId, InstanceId, JobId, NetworkId, TenantId, name_or_id},
        idempotency::IdempotencyKey,
        instances::{
            RawInstance, Reason, RestartPolicy, Status,
            service::{AcceptedRequest, Origin},
            spec::{Placement, Port},
            store::{InstanceFilter, InstanceRecord},
        },
    },
    http::{body, problem::Problem, query::Query, request_id},
};

/// The number of labels that a list can be filtered by: an instance has no more of them.
const LABEL_FILTERS_MAX: usize = 64;
/// How many seconds a client should wait before it reads the status of an accepted request.
const RETRY_AFTER_S: &str = "1";

/// An instance.
#[derive(Serialize, ToSchema)]
pub struct Instance {
    #[schema(value_type = Uuid)]
    id: InstanceId,
    /// The name, unique per tenant among instances that are not deleted.
    name: String,
    #[schema(value_type = Uuid)]
    tenant_id: TenantId,
    image: String,
    /// The command; the image's own when null.
    command: Option<Vec<String>>,
    env: BTreeMap<String, String>,
    /// The share of processors in thousandths of a core.
    cpu_millis: i32,
    memory_mib: i32,
    network: InstanceNetwork,
    ports: Vec<Port>,
    labels: BTreeMap<String, String>,
    restart_policy: RestartPolicy,
    placement: Placement,
    status: Status,
    /// The reason of the status, where there is one.
    status_reason: Option<Reason>,
    /// The host that it is placed on; null before that.
    host: Option<InstanceHost>,
    /// The job of the newest accepted request.
    #[schema(value_type = Uuid)]
    job_id: JobId,
    /// How often the process was started again by its restart policy.
    restart_count: i32,
    /// The exit code of the process, when it has ended.
    exit_code: Option<i64>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    started_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    finished_at: Option<OffsetDateTime>,
}

/// An instance's place in its network.
#[derive(Serialize, ToSchema)]
pub struct InstanceNetwork {
    #[schema(value_type = Uuid)]
    id: NetworkId,
    name: String,
    address: String,
    mac: String,
}

/// The host that runs an instance.
#[derive(Serialize, ToSchema)]
pub struct InstanceHost {
    #[schema(value_type = Uuid)]
    id: HostId,
    name: String,
    /// Where its published ports are reached; its name when none is set.
    address: String,
}

/// One page of instances.
#[derive(Serialize, ToSchema)]
pub struct InstanceList {
    items: Vec<Instance>,
    next_cursor: Option<String>,
}

/// An accepted request: instance and job were committed before this was sent.
#[derive(Serialize, ToSchema)]
pub struct Accepted {
    #[schema(value_type = Uuid)]
    job_id: JobId,
    instance: Instance,
}

impl From<InstanceRecord> for Instance {
    fn from(record: InstanceRecord) -> Self {
        Self {
            id: record.id,
            name: record.name,
            tenant_id: record.tenant,
            image: record.image,
            command: record.command,
            env: record.env,
            cpu_millis: record.cpu_millis,
            memory_mib: record.memory_mib,
            network: InstanceNetwork {
                id: record.network,
                name: record.network_name,
                address: record.address.to_string(),
                mac: record.mac,
            },
            ports: record.ports,
            labels: record.labels,
            restart_policy: record.restart_policy,
            placement: record.placement,
            status: record.status,
            status_reason: record.status_reason,
            host: record.host.map(|host| InstanceHost {
                id: host.id,
                address: host.address.unwrap_or_else(|| host.name.clone()),
                name: host.name,
            }),
            job_id: record.job,
            restart_count: record.restart_count,
            exit_code: record.exit_code,
            created_at: record.created_at,
            updated_at: record.updated_at,
            started_at: record.started_at,
            finished_at: record.finished_at,
        }
    }
}

/// Answers 202 with the job, and with the headers `Location` and `Retry-After`.
fn accepted(accepted: AcceptedRequest) -> HttpResponse {
    let AcceptedRequest { instance, job, replayed } = accepted;
    let mut response = HttpResponse::Accepted();
    response.insert_header((header::LOCATION, format!("/instances/{}", instance.id)));
    response.insert_header((header::RETRY_AFTER, RETRY_AFTER_S));
    if replayed {
        response.insert_header(("Idempotent-Replayed", "true"));
    }
    response.json(Accepted { job_id: job, instance: instance.into() })
}

/// Describes this request to the service. `request_id`: the result of `request_id::current`, which is empty outside a
/// request.
fn origin<'a>(tenant: TenantId, idempotency: Option<&'a IdempotencyKey>, request_id: &'a str) -> Origin<'a> {
    Origin { tenant, idempotency, request_id: Some(request_id).filter(|id| !id.is_empty()) }
}

/// Creates an instance: accepts the request and queues the job that provisions it.
#[utoipa::path(post, path = "/instances", operation_id = "create_instance", tag = "instances",
    request_body = RawInstance, params(Repeatable),
    responses((status = 202, description = "Accepted: the instance and the job that provisions it", body = Accepted),
              ApiError))]
pub async fn create(
    request: HttpRequest,
    state: web::Data<ApiState>,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let tenant = caller(&request).tenant;
    Query::of(&request)?.finish()?;
    let body = body::json::<RawInstance>(&request, payload).await?;
    let idempotency = idempotency::key(&request, &body.sent)?;
    let spec = state.instances.parse(body.value).map_err(Problem::invalid)?;

    let request_id = request_id::current();
    let request = state.instances.create(origin(tenant, idempotency.as_ref(), &request_id), &spec).await?;

    Ok(accepted(request.ok_or_else(Problem::not_found)?))
}

/// Lists instances, newest first.
#[utoipa::path(get, path = "/instances", operation_id = "list_instances", tag = "instances",
    params(OnePage, ("status" = inline(Option<Status>), Query,
                     description = "Only instances of this status; deleted ones are listed with `deleted` only"),
           ("name" = Option<String>, Query, description = "Only the instance of this name"),
           ("label" = Option<Vec<String>>, Query, description = "`name=value`; repeatable: only instances with all of them"),
           ("network" = Option<String>, Query, description = "Only instances in this network, by name or id"),
           ("host" = Option<String>, Query, description = "Only instances on this host, by name or id")),
    responses((status = 200, description = "A page of instances, newest first", body = InstanceList), ApiError))]
pub async fn list(request: HttpRequest, state: web::Data<ApiState>) -> Result<HttpResponse, ApiError> {
    let mut query = Query::of(&request)?;
    let page = query.take_page();
    let filter = InstanceFilter {
        tenant: take_tenant(&mut query, &caller(&request)),
        status: query.take_parsed("status", "must be an instance's status", |text| text.parse().ok()),
        labels: take_labels(&mut query),
        name: query.take("name"),
        network: query.take("network").map(name_or_id),
        host: query.take("host").map(name_or_id),
    };
    query.finish()?;

    let page = state.instances.list(&filter, page).await?;

    let items = page.items.into_iter().map(Instance::from).collect();
    Ok(HttpResponse::Ok().json(InstanceList { items, next_cursor: page.next_cursor }))
}

fn take_labels(query: &mut Query) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    for label in query.take_all("label") {
        match label.split_once('=') {
            Some((name, value)) if !name.is_empty() => labels.push((name.to_owned(), value.to_owned())),
            _ => query.refuse("label", "invalid", "must be name=value"),
        }
    }
    // Postgres compares each of them with the labels of each instance.
    if labels.len() > LABEL_FILTERS_MAX {
        query.refuse("label", "too_long", &format!("may be given at most {LABEL_FILTERS_MAX} times"));
    }
    labels
}

/// Shows an instance, with `wait` not before it has a status.
#[utoipa::path(get, path = "/instances/{id}", operation_id = "get_instance", tag = "instances",
    params(ById, ("wait" = inline(Option<Status>), Query,
                  description = "Answer when the status is this one, or cannot become it without another request"),
           Timeout, ("If-None-Match" = Option<String>, Header, description = "ETags of answers that the client has")),
    responses((status = 200, description = "The instance", body = Instance),
              (status = 304, description = "Not changed since the answer with this ETag"), ApiError))]
pub async fn show(request: HttpRequest, state: web::Data<ApiState>) -> Result<HttpResponse, ApiError> {
    let tenant = caller(&request).tenant;
    let id = InstanceId::from(path_id(&request)?);
    let load = async || state.instances.get(tenant, id).await?.ok_or_else(|| ApiError::from(Problem::not_found()));
    let mut record = load().await?;
    let mut query = Query::of(&request)?;
    let target = query.take_parsed("wait", "must be an instance's status", |text| text.parse::<Status>().ok());
    let deadline = wait::take_deadline(&mut query);
    query.finish()?;

    if let Some(target) = target {
        while !is_settled(&record, target) && !state.stopping.is_cancelled() {
            let mut waiter = state.instance_watch.wait(id, record.status);
            tokio::select! {
                () = waiter.changed() => record = load().await?,
                () = tokio::time::sleep_until(deadline) => break,
                () = state.stopping.cancelled() => break,
            }
        }
    }

    with_etag(&request, &Instance::from(record))
}

/// Returns whether there is nothing to wait for: the status is reached, or out of reach without another request.
fn is_settled(instance: &InstanceRecord, target: Status) -> bool {
    instance.status == target || !instance.status.can_become(target, instance.restart_policy)
}

/// Answers 200 with an ETag of the body, or 304 when the client has an answer with this ETag.
fn with_etag(request: &HttpRequest, view: &Instance) -> Result<HttpResponse, ApiError> {
    let body = serde_json::to_string(view).map_err(|error| {
        tracing::error!(%error, instance = %view.id, "could not serialize an instance, answering 500");
        Problem::internal()
    })?;
    let digest = Sha256::digest(body.as_bytes());
    let tag = EntityTag::new_strong(data_encoding::HEXLOWER.encode(&digest[..16]));
    let is_known = match IfNoneMatch::parse(request) {
        Ok(IfNoneMatch::Any) => true,
        Ok(IfNoneMatch::Items(tags)) => tags.iter().any(|known| known.weak_eq(&tag)),
        // A header that is no list of tags matches nothing.
        Err(_) => false,
    };
    if is_known {
        return Ok(HttpResponse::NotModified().insert_header(ETag(tag)).finish());
    }
    Ok(HttpResponse::Ok().insert_header(ETag(tag)).content_type("application/json").body(body))
}

/// Deletes an instance: accepts the request and queues the job that removes its container.
#[utoipa::path(delete, path = "/instances/{id}", operation_id = "delete_instance", tag = "instances",
    params(ById, Repeatable),
    responses((status = 202, description = "Accepted: the instance and the job that deletes it", body = Accepted),
              ApiError))]
pub async fn delete(request: HttpRequest, state: web::Data<ApiState>) -> Result<HttpResponse, ApiError> {
    let tenant = caller(&request).tenant;
    let id = InstanceId::from(path_id(&request)?);
    let checked = Query::of(&request).and_then(Query::finish).and_then(|()| idempotency::key(&request, &Value::Null));
    let idempotency = match checked {
        Ok(idempotency) => idempotency,
        // A missing instance is answered 404 before an invalid query is answered 422.
        Err(problem) => {
            state.instances.get(tenant, id).await?.ok_or_else(Problem::not_found)?;
            return Err(problem.into());
        }
    };

    let request_id = request_id::current();
    let request = state.instances.delete(origin(tenant, idempotency.as_ref(), &request_id), id).await?;

    Ok(accepted(request.ok_or_else(Problem::not_found)?))
}
