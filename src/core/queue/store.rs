//! Reading jobs for their owner. The statements that change jobs are in the other modules of `queue` and in
//! `instances`.
//!
//! A row that holds a value this release does not know is an error of that row: `get` returns it with the row's id, and
//! `list` logs the id and leaves the row out.

use time::OffsetDateTime;
use tokio_postgres::types::Json;
use uuid::Uuid;

use super::{
    job::{JobKind, JobStatus},
    step::Step,
};
use crate::core::{
    db::{Consistency, DbError, DualDb, Row, column, decode_each, decode_one},
    id::{InstanceId, JobId, TenantId},
    instances::Reason,
    page::{Page, PageRequest},
};

const LIST: &str = include_str!("list.sql");

/// A job.
#[derive(Clone, Debug)]
pub struct JobRecord {
    /// The job's id.
    pub id: JobId,
    /// The work that it does.
    pub kind: JobKind,
    /// The instance it works on.
    pub instance: InstanceId,
    /// Its status.
    pub status: JobStatus,
    /// How many attempts were begun.
    pub attempt: i32,
    /// After this many attempts a failure is final.
    pub max_attempts: i32,
    /// How often a worker crashed while it held the job.
    pub crashes: i32,
    /// When it is or was due.
    pub run_at: OffsetDateTime,
    /// The steps of its newest attempt.
    pub steps: Vec<Step>,
    /// Why it failed.
    pub error: Option<Reason>,
    /// The failed job that this one repeats.
    pub retry_of: Option<JobId>,
    /// When it was accepted.
    pub created_at: OffsetDateTime,
    /// When its first attempt began.
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    pub finished_at: Option<OffsetDateTime>,
}

/// The filter of a list of jobs; `None`: any.
#[derive(Clone, Debug)]
pub struct JobFilter {
    /// Jobs of this tenant.
    pub tenant: TenantId,
    /// Jobs of this status.
    pub status: Option<JobStatus>,
    /// Jobs of this kind.
    pub kind: Option<JobKind>,
    /// Jobs of this instance.
    pub instance: Option<InstanceId>,
}

/// Returns the tenant's job; `None` where there is none, or where it is another tenant's.
///
/// # Errors
/// `Unavailable` or `ReadOnly` when the primary cannot be read; `Invariant` when the row cannot be read; `Statement`
/// for a bug.
pub async fn get(db: &DualDb, tenant: TenantId, id: JobId) -> Result<Option<JobRecord>, DbError> {
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query(
                "select id, kind, instance_id, status, attempt, max_attempts, crashes, run_at, steps, error, retry_of,
                   created_at, started_at, finished_at
                 from jobs where id = $1 and tenant_id = $2",
                &[&id, &tenant],
            )
            .await
        })
        .await?;
    rows.first().map(|row| decode_one(row, "job", decode_record)).transpose()
}

/// Returns a page of jobs, newest first.
///
/// # Errors
/// `Unavailable` or `ReadOnly` when no server can be read; `Statement` or `Invariant` for a bug.
pub async fn list(
    db: &DualDb,
    consistency: Consistency,
    filter: JobFilter,
    page: PageRequest,
) -> Result<Page<JobRecord>, DbError> {
    let filter = &filter;
    let rows = db
        .read(consistency, |c| async move {
            c.query(
                LIST,
                &[
                    &filter.tenant,
                    &filter.status,
                    &filter.kind,
                    &filter.instance,
                    &page.before.unwrap_or(Uuid::max()),
                    &page.rows(),
                    &PageRequest::BYTES_MAX,
                ],
            )
            .await
        })
        .await?;
    page.decode(&rows, "job", decode_record)
}

/// Returns the present status of each of these jobs, in one statement for all clients that wait.
///
/// # Errors
/// `Unavailable` or `ReadOnly` when the primary cannot be read; `Statement` for a bug.
pub async fn statuses(db: &DualDb, ids: Vec<JobId>) -> Result<Vec<(JobId, JobStatus)>, DbError> {
    let ids = &ids;
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query("select id, status from jobs where id = any($1)", &[ids]).await
        })
        .await?;
    Ok(decode_each(&rows, "job", |row| Ok((column(row, "id")?, column(row, "status")?))))
}

fn decode_record(row: &Row) -> Result<JobRecord, DbError> {
    Ok(JobRecord {
        id: column(row, "id")?,
        kind: column(row, "kind")?,
        instance: column(row, "instance_id")?,
        status: column(row, "status")?,
        attempt: column(row, "attempt")?,
        max_attempts: column(row, "max_attempts")?,
        crashes: column(row, "crashes")?,
        run_at: column(row, "run_at")?,
        steps: column::<Json<_>>(row, "steps")?.0,
        error: column::<Option<Json<_>>>(row, "error")?.map(|Json(error)| error),
        retry_of: column(row, "retry_of")?,
        created_at: column(row, "created_at")?,
        started_at: column(row, "started_at")?,
        finished_at: column(row, "finished_at")?,
    })
}
