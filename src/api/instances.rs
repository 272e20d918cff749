//! `/instances`: asked for, looked at, deleted.

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    accepted::{Accepted, accepted},
    auth::caller,
    error::ApiError,
    idempotency,
    parameters::{ById, OnePage, Repeatable, Timeout},
    wait,
};
use crate::{
    core::{
        id::{HostId, InstanceId, JobId, NetworkId, TenantId, name_or_id, parse_uuid},
        identity::Scope,
        instances::{
            InstanceSpec, RawInstance, Reason, RestartPolicy, Status, create, delete,
            spec::{Placement, Port},
            store::{self, InstanceFilter, InstanceRecord},
        },
        queue::{job::JobKind, notify::Channel},
    },
    http::{body, problem::Problem, query::Query},
};

/// An instance has at most so many labels.
const LABEL_FILTERS_MAX: usize = 64;
/// How long a job may wait for a host with room.
const QUEUE_DEADLINE_S: f64 = 600.0;

/// An instance.
#[derive(Serialize, ToSchema)]
pub struct Instance {
    #[schema(value_type = Uuid)]
    id: InstanceId,
    name: String,
    #[schema(value_type = Uuid)]
    tenant_id: TenantId,
    image: String,
    #[schema(value_type = Option<Vec<String>>)]
    command: Option<Value>,
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    env: Value,
    cpu_millis: i32,
    memory_mib: i32,
    network: InstanceNetwork,
    #[schema(value_type = Vec<Port>)]
    ports: Value,
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    labels: Value,
    #[schema(value_type = RestartPolicy)]
    restart_policy: String,
    #[schema(value_type = Placement)]
    placement: Value,
    #[schema(value_type = Status)]
    status: String,
    #[schema(value_type = Option<Reason>)]
    status_reason: Option<Value>,
    host: Option<InstanceHost>,
    /// The newest intent's job.
    #[schema(value_type = Uuid)]
    job_id: JobId,
    restart_count: i32,
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
            host: record.host.map(|(id, name, address)| InstanceHost {
                id,
                address: address.unwrap_or_else(|| name.clone()),
                name,
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

/// The id in the path; what is not a UUID names nothing.
pub(super) fn path_id(request: &HttpRequest) -> Result<Uuid, Problem> {
    let text = request.match_info().get("id").unwrap_or_default();
    parse_uuid(text).map_err(|_| Problem::not_found())
}

#[utoipa::path(post, path = "/instances", operation_id = "create_instance", tag = "instances",
    request_body = RawInstance, params(Repeatable),
    responses((status = 202, description = "Accepted: the instance and the job that provisions it", body = Accepted),
              ApiError))]
pub async fn create(
    request: HttpRequest,
    state: web::Data<ApiState>,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let caller = caller(&request);
    Query::of(&request)?.finish()?;
    let body = body::json::<RawInstance>(&request, payload).await?;
    let idempotency = idempotency::key(&request, &body.sent)?;
    let range = &state.instances.port_range;
    let spec = InstanceSpec::parse(body.value, range).map_err(Problem::invalid)?;
    let create = create::Create {
        tenant: caller.tenant,
        spec: &spec,
        idempotency: idempotency.as_ref(),
        port_range: range.clone(),
        queue_deadline_s: QUEUE_DEADLINE_S,
    };
    match create::create(&state.db, &create).await? {
        create::Accepted::New(record) => {
            let notify = state.notifier.notify(Channel::Any, record.job, JobKind::Provision);
            tokio::join!(state.read_your_writes.record_write(caller.tenant), notify);
            Ok(accepted(record.job, *record, false))
        }
        create::Accepted::Replayed(replay) => {
            // Its first answer may have been lost before the write was noted.
            state.read_your_writes.record_write(caller.tenant).await;
            let record = store::get(&state.db, caller.tenant, replay.instance).await?.ok_or_else(Problem::not_found)?;
            Ok(accepted(replay.job, record, true))
        }
    }
}

#[utoipa::path(get, path = "/instances", operation_id = "list_instances", tag = "instances",
    params(OnePage, ("status" = inline(Option<Status>), Query,
                     description = "Only instances of this status; deleted ones are listed with `deleted` only"),
           ("name" = Option<String>, Query, description = "Only the instance of this name"),
           ("label" = Option<Vec<String>>, Query, description = "`name=value`; repeatable: only instances with all of them"),
           ("network" = Option<String>, Query, description = "Only instances in this network, by name or id"),
           ("host" = Option<String>, Query, description = "Only instances on this host, by name or id")),
    responses((status = 200, description = "A page of instances, newest first", body = InstanceList), ApiError))]
pub async fn list(request: HttpRequest, state: web::Data<ApiState>) -> Result<HttpResponse, ApiError> {
    let caller = caller(&request);
    let mut query = Query::of(&request)?;
    let page = query.take_page();
    let tenant = take_tenant(&mut query, &caller);
    let status = query.take_parsed("status", "must be an instance's status", |text| text.parse::<Status>().ok());
    let mut labels = Vec::new();
    for label in query.take_all("label") {
        match label.split_once('=') {
            Some((name, value)) if !name.is_empty() => labels.push(json!({ name: value })),
            _ => query.refuse("label", "invalid", "must be name=value"),
        }
    }
    // Each is looked for in each instance.
    if labels.len() > LABEL_FILTERS_MAX {
        query.refuse("label", "too_long", &format!("may be given at most {LABEL_FILTERS_MAX} times"));
    }
    let filter = InstanceFilter {
        tenant,
        status: status.map(|status| status.to_string()),
        name: query.take("name"),
        labels,
        network: query.take("network").map(name_or_id),
        host: query.take("host").map(name_or_id),
    };
    query.finish()?;
    let page = store::list(&state.db, state.read_your_writes.of(tenant).await, filter, page).await?;
    let items = page.items.into_iter().map(Instance::from).collect();
    Ok(HttpResponse::Ok().json(InstanceList { items, next_cursor: page.next_cursor }))
}

/// Whose things a list shows: the caller's, or for an admin any tenant's.
pub(super) fn take_tenant(query: &mut Query, caller: &crate::core::identity::Caller) -> TenantId {
    let asked = query.take_parsed("tenant_id", "must be a tenant's id", |text| text.parse::<TenantId>().ok());
    match asked {
        Some(tenant) if tenant == caller.tenant || caller.may(Scope::Admin) => tenant,
        Some(_) => {
            query.refuse("tenant_id", "invalid", "only an admin may name another tenant");
            caller.tenant
        }
        None => caller.tenant,
    }
}

#[utoipa::path(get, path = "/instances/{id}", operation_id = "get_instance", tag = "instances",
    params(ById, ("wait" = inline(Option<Status>), Query,
                  description = "Answer when the status is this one, or cannot become it without another request"),
           Timeout, ("If-None-Match" = Option<String>, Header, description = "ETags of answers that the client has")),
    responses((status = 200, description = "The instance", body = Instance),
              (status = 304, description = "Not changed since the answer with this ETag"), ApiError))]
pub async fn show(request: HttpRequest, state: web::Data<ApiState>) -> Result<HttpResponse, ApiError> {
    let caller = caller(&request);
    let id = InstanceId::from(path_id(&request)?);
    let load =
        async || store::get(&state.db, caller.tenant, id).await?.ok_or_else(|| ApiError::from(Problem::not_found()));
    let mut record = load().await?;
    let mut query = Query::of(&request)?;
    let target = query.take_parsed("wait", "must be an instance's status", |text| text.parse::<Status>().ok());
    let deadline = wait::take_deadline(&mut query);
    query.finish()?;
    if let Some(target) = target {
        loop {
            if is_settled(&record, target) || state.stopping.is_cancelled() {
                break;
            }
            let mut waiter = state.instance_watch.wait(id.uuid(), &record.status);
            tokio::select! {
                () = waiter.changed() => record = load().await?,
                () = tokio::time::sleep_until(deadline) => break,
                () = state.stopping.cancelled() => break,
            }
        }
    }
    let body = serde_json::to_string(&Instance::from(record)).map_err(|error| {
        tracing::error!(%error, "an instance that cannot be shown");
        Problem::new(crate::http::problem::Code::Internal, "the request id leads to the log")
    })?;
    let digest = Sha256::digest(body.as_bytes());
    let etag = format!("\"{}\"", data_encoding::HEXLOWER.encode(&digest[..16]));
    let known = request.headers().get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if known.split(',').any(|tag| matches!(tag.trim(), "*") || tag.trim().trim_start_matches("W/") == etag) {
        return Ok(HttpResponse::NotModified().insert_header((header::ETAG, etag)).finish());
    }
    Ok(HttpResponse::Ok().insert_header((header::ETAG, etag)).content_type("application/json").body(body))
}

/// Whether there is nothing to wait for: the status is reached, or is out of reach without another request.
fn is_settled(instance: &InstanceRecord, target: Status) -> bool {
    match (instance.status.parse::<Status>(), instance.restart_policy.parse()) {
        (Ok(status), Ok(policy)) => status == target || !status.can_become(target, policy),
        // Of a newer release: what can follow is not known here.
        _ => true,
    }
}

#[utoipa::path(delete, path = "/instances/{id}", operation_id = "delete_instance", tag = "instances",
    params(ById, Repeatable),
    responses((status = 202, description = "Accepted: the instance and the job that deletes it", body = Accepted),
              ApiError))]
pub async fn delete(request: HttpRequest, state: web::Data<ApiState>) -> Result<HttpResponse, ApiError> {
    let caller = caller(&request);
    let id = InstanceId::from(path_id(&request)?);
    let checked = Query::of(&request).and_then(Query::finish).and_then(|()| idempotency::key(&request, &Value::Null));
    let idempotency = match checked {
        Ok(idempotency) => idempotency,
        // Existence is judged before the query.
        Err(problem) => {
            store::get(&state.db, caller.tenant, id).await?.ok_or_else(Problem::not_found)?;
            return Err(problem.into());
        }
    };
    let deletion = delete::delete(&state.db, caller.tenant, id, idempotency.as_ref()).await?;
    let deletion = deletion.ok_or_else(Problem::not_found)?;
    let notify = async {
        if let Some(host) = deletion.host {
            state.notifier.notify(Channel::Host(host), deletion.job, JobKind::Delete).await;
        }
    };
    tokio::join!(state.read_your_writes.record_write(caller.tenant), notify);
    Ok(accepted(deletion.job, deletion.instance, deletion.replayed))
}
