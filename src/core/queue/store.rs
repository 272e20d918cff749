//! Jobs as they are read back. They change only in `core/protocol`.

use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::core::{
    db::{Consistency, DbError, DualDb, Row},
    id::{InstanceId, JobId, TenantId},
    page::{Page, PageRequest},
};

#[derive(Clone, Debug)]
pub struct JobRecord {
    pub id: JobId,
    pub kind: String,
    pub instance: InstanceId,
    pub status: String,
    pub attempt: i32,
    pub max_attempts: i32,
    pub crashes: i32,
    pub run_at: OffsetDateTime,
    /// An array of `Step`.
    pub steps: Value,
    /// `{"code","detail"}`.
    pub error: Option<Value>,
    pub retry_of: Option<JobId>,
    pub created_at: OffsetDateTime,
    pub started_at: Option<OffsetDateTime>,
    pub finished_at: Option<OffsetDateTime>,
}

/// What a list is narrowed to.
#[derive(Clone, Debug)]
pub struct JobFilter {
    pub tenant: TenantId,
    pub status: Option<String>,
    pub kind: Option<String>,
    pub instance: Option<InstanceId>,
}

/// The columns that `record` reads. A result names its columns: see `instance_columns`.
macro_rules! job_columns {
    () => {
        "id, kind, instance_id, status, attempt, max_attempts, crashes, run_at, steps, error, retry_of, created_at, started_at,
  finished_at"
    };
}

/// The tenant's job; another tenant's is none.
///
/// # Errors
/// As the database says.
pub async fn get(db: &DualDb, tenant: TenantId, id: JobId) -> Result<Option<JobRecord>, DbError> {
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query(
                concat!("select ", job_columns!(), " from jobs where id = $1 and tenant_id = $2"),
                &[&id.uuid(), &tenant.uuid()],
            )
            .await
        })
        .await?;
    Ok(rows.first().map(record))
}

/// Jobs, newest first.
///
/// # Errors
/// As the database says.
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
                // As for instances. The fixed part of an item has at most 512 bytes.
                concat!(
                    "select ",
                    job_columns!(),
                    ", page_bytes
                     from (select ",
                    job_columns!(),
                    ", bytes, sum(bytes) over (order by id desc) as page_bytes
                     from (select ",
                    job_columns!(),
                    ", least(512 + octet_length(steps::text) + coalesce(octet_length(error::text), 0), $7) as bytes
                     from jobs
                     where tenant_id = $1 and id < $5 and ($2::text is null or status = $2)
                       and ($3::text is null or kind = $3) and ($4::uuid is null or instance_id = $4)
                     order by id desc limit $6) j) j
                     where page_bytes - bytes <= $7 order by id desc"
                ),
                &[
                    &filter.tenant.uuid(),
                    &filter.status,
                    &filter.kind,
                    &filter.instance.map(InstanceId::uuid),
                    &page.before.unwrap_or(Uuid::max()),
                    &page.rows(),
                    &PageRequest::BYTES_MAX,
                ],
            )
            .await
        })
        .await?;
    let rows = rows.iter().map(|row| (record(row), row.get("page_bytes")));
    Ok(page.finish(rows.collect(), |job: &JobRecord| job.id.uuid()))
}

/// The present status of many jobs in one question, for those who wait.
///
/// # Errors
/// As the database says.
pub async fn statuses(db: &DualDb, ids: Vec<Uuid>) -> Result<Vec<(Uuid, String)>, DbError> {
    let ids = &ids;
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query("select id, status from jobs where id = any($1)", &[ids]).await
        })
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn record(row: &Row) -> JobRecord {
    JobRecord {
        id: JobId::from(row.get::<_, Uuid>("id")),
        kind: row.get("kind"),
        instance: InstanceId::from(row.get::<_, Uuid>("instance_id")),
        status: row.get("status"),
        attempt: row.get("attempt"),
        max_attempts: row.get("max_attempts"),
        crashes: row.get("crashes"),
        run_at: row.get("run_at"),
        steps: row.get("steps"),
        error: row.get("error"),
        retry_of: row.get::<_, Option<Uuid>>("retry_of").map(JobId::from),
        created_at: row.get("created_at"),
        started_at: row.get("started_at"),
        finished_at: row.get("finished_at"),
    }
}
