//! `/jobs`: lists a tenant's jobs, and shows one with its steps and its error.
//!
//! `GET /jobs/{id}?wait=true` answers when the job has ended or the time-out is over. It polls nothing itself: one
//! statement per process reads the statuses of all jobs that requests wait for (`wait`).

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{
    ApiState,
    auth::caller,
    error::ApiError,
    parameters::{ById, OnePage, Timeout, path_id, take_tenant},
    wait,
};
use crate::{
    core::{
        id::{InstanceId, JobId},
        instances::Reason,
        queue::{
            job::{JobKind, JobStatus},
            step::Step,
            store::{self, JobFilter, JobRecord},
        },
    },
    http::{problem::Problem, query::Query},
};

/// Asynchronous work on one instance.
#[derive(Serialize, ToSchema)]
pub struct Job {
    #[schema(value_type = Uuid)]
    id: JobId,
    kind: JobKind,
    #[schema(value_type = Uuid)]
    instance_id: InstanceId,
    status: JobStatus,
    /// How many attempts were begun.
    attempt: i32,
    /// After this many attempts a failure is final.
    max_attempts: i32,
    /// How often a worker crashed while it held the job.
    crashes: i32,
    /// When it is or was due.
    #[serde(with = "time::serde::rfc3339")]
    run_at: OffsetDateTime,
    /// The steps of its newest attempt.
    steps: Vec<Step>,
    /// Why it failed.
    error: Option<Reason>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    started_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    finished_at: Option<OffsetDateTime>,
    /// The failed job that this one repeats.
    #[schema(value_type = Option<Uuid>)]
    retry_of: Option<JobId>,
}

/// One page of jobs.
#[derive(Serialize, ToSchema)]
pub struct JobList {
    items: Vec<Job>,
    next_cursor: Option<String>,
}

impl From<JobRecord> for Job {
    fn from(record: JobRecord) -> Self {
        Self {
            id: record.id,
            kind: record.kind,
            instance_id: record.instance,
            status: record.status,
            attempt: record.attempt,
            max_attempts: record.max_attempts,
            crashes: record.crashes,
            run_at: record.run_at,
            steps: record.steps,
            error: record.error,
            created_at: record.created_at,
            started_at: record.started_at,
            finished_at: record.finished_at,
            retry_of: record.retry_of,
        }
    }
}

/// Lists jobs.
///
/// # Errors
/// A validation problem for a query that is not valid; `unavailable` when no server can be read.
#[utoipa::path(get, path = "/jobs", operation_id = "list_jobs", tag = "jobs",
    summary = "List jobs", description = "Lists the jobs of a tenant, newest first.",
    params(OnePage, ("status" = inline(Option<JobStatus>), Query, description = "Only jobs of this status"),
           ("kind" = inline(Option<JobKind>), Query, description = "Only jobs of this kind"),
           ("instance" = Option<Uuid>, Query, description = "Only jobs of the instance with this id")),
    responses((status = 200, description = "A page of jobs, newest first", body = JobList), ApiError))]
pub async fn list(request: HttpRequest, state: web::Data<ApiState>) -> Result<HttpResponse, ApiError> {
    let caller = caller(&request);
    let mut query = Query::of(&request)?;
    let page = query.take_page();
    let tenant = take_tenant(&mut query, &caller);
    let filter = JobFilter {
        tenant,
        status: query.take_parsed("status", "must be a job's status", |text| text.parse().ok()),
        kind: query.take_parsed("kind", "must be a job's kind", |text| text.parse().ok()),
        instance: query.take_parsed("instance", "must be an instance's id", |text| text.parse().ok()),
    };
    query.finish()?;
    let page = store::list(&state.db, state.read_your_writes.consistency_for(tenant).await, filter, page).await?;
    let items = page.items.into_iter().map(Job::from).collect();
    Ok(HttpResponse::Ok().json(JobList { items, next_cursor: page.next_cursor }))
}

/// Shows a job, with `wait=true` not before it has ended.
///
/// # Errors
/// `not_found` when the tenant has no such job; a validation problem for a query that is not valid; `unavailable` when
/// the primary cannot be read.
#[utoipa::path(get, path = "/jobs/{id}", operation_id = "get_job", tag = "jobs",
    summary = "Get a job",
    description = "Returns a job; with `wait=true` not before it has ended or the time-out is over.",
    params(ById, ("wait" = Option<bool>, Query, description = "`true`: answer when the job has ended"), Timeout),
    responses((status = 200, description = "The job", body = Job), ApiError))]
pub async fn show(request: HttpRequest, state: web::Data<ApiState>) -> Result<HttpResponse, ApiError> {
    let caller = caller(&request);
    let id = JobId::from(path_id(&request)?);
    let load =
        async || store::get(&state.db, caller.tenant, id).await?.ok_or_else(|| ApiError::from(Problem::not_found()));
    let mut record = load().await?;
    let mut query = Query::of(&request)?;
    let wait = query.take_parsed("wait", "must be true or false", |text| text.parse::<bool>().ok()).unwrap_or_default();
    let deadline = wait::take_deadline(&mut query);
    query.finish()?;
    while wait && !record.status.has_ended() {
        let mut waiter = state.job_watch.wait(id.uuid(), record.status.as_str());
        tokio::select! {
            () = waiter.changed() => record = load().await?,
            () = tokio::time::sleep_until(deadline) => break,
            () = state.stopping.cancelled() => break,
        }
    }
    Ok(HttpResponse::Ok().json(Job::from(record)))
}
