//! Instances as they are read back. They change only in `core/protocol`.

use std::{net::IpAddr, time::Duration};

use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::core::{
    db::{Consistency, DbError, DualDb, Row},
    id::{HostId, InstanceId, JobId, NetworkId, TenantId},
    page::{Page, PageRequest},
};

#[derive(Clone)]
pub struct InstanceRecord {
    pub id: InstanceId,
    pub name: String,
    pub tenant: TenantId,
    pub image: String,
    pub command: Option<Value>,
    pub env: Value,
    pub cpu_millis: i32,
    pub memory_mib: i32,
    pub network: NetworkId,
    pub network_name: String,
    pub address: IpAddr,
    pub mac: String,
    pub ports: Value,
    pub labels: Value,
    pub restart_policy: String,
    pub placement: Value,
    pub status: String,
    pub status_reason: Option<Value>,
    pub generation: i64,
    pub host: Option<(HostId, String, Option<String>)>,
    pub job: JobId,
    pub restart_count: i32,
    pub exit_code: Option<i64>,
    pub created_at: OffsetDateTime,
    pub updated_at: OffsetDateTime,
    pub started_at: Option<OffsetDateTime>,
    pub finished_at: Option<OffsetDateTime>,
}

// `env` may hold the tenant's secrets.
impl std::fmt::Debug for InstanceRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InstanceRecord").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What a list is narrowed to.
#[derive(Clone, Debug)]
pub struct InstanceFilter {
    pub tenant: TenantId,
    pub status: Option<String>,
    pub name: Option<String>,
    /// All of these, each an object.
    pub labels: Vec<Value>,
    /// A name or an id.
    pub network: Option<String>,
    /// A name or an id.
    pub host: Option<String>,
}

/// The columns of an instance `i` that `record` reads. A result names its columns: with `i.*` a column that the next
/// release adds would change what the prepared statements of this one return, and Postgres then refuses to run them.
macro_rules! instance_columns {
    () => {
        "i.id, i.name, i.tenant_id, i.image, i.command, i.env, i.cpu_millis, i.memory_mib, i.network_id, i.network_name,
  i.address, i.mac, i.ports, i.labels, i.restart_policy, i.placement, i.status, i.status_reason, i.generation, i.host_id,
  i.job_id, i.restart_count, i.exit_code, i.created_at, i.updated_at, i.started_at, i.finished_at"
    };
}
pub(in crate::core) use instance_columns;

/// The tenant's instance; another tenant's is none, nor is one deleted over 24 h ago.
///
/// # Errors
/// As the database says.
pub async fn get(db: &DualDb, tenant: TenantId, id: InstanceId) -> Result<Option<InstanceRecord>, DbError> {
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query(
                concat!(
                    "select ",
                    instance_columns!(),
                    ", h.name as host_name, h.address as host_address
                     from instances i left join hosts h on h.id = i.host_id
                     where i.id = $1 and i.tenant_id = $2
                       and (i.deleted_at is null or i.deleted_at > now() - interval '24 hours')"
                ),
                &[&id.uuid(), &tenant.uuid()],
            )
            .await
        })
        .await?;
    Ok(rows.first().map(record))
}

// Lists are asked for all the time: written so that one plan, made once, is right for every caller. `$2 is null or …`
// around what an index finds would be either planned anew each time or a scan of everybody's instances.
// From the inside out: the page without regard to its size (the fixed part of an item has at most 1.5 KiB); the size of the
// answer up to each row's end; the rows up to the first one that is too many. An item larger than a page counts as a whole
// page, so that the one after it is sent, too: it shows that there is a next page.
macro_rules! list_sql {
    ($status:literal) => {
        concat!(
            "select ",
            instance_columns!(),
            ", i.host_name, i.host_address, i.page_bytes
             from (select ",
            instance_columns!(),
            ", i.host_name, i.host_address, i.bytes, sum(i.bytes) over (order by i.id desc) as page_bytes
             from (select ",
            instance_columns!(),
            ", h.name as host_name, h.address as host_address,
               least(1536 + octet_length(i.image) + coalesce(octet_length(i.command::text), 0) + octet_length(i.env::text)
                 + octet_length(i.ports::text) + octet_length(i.labels::text) + octet_length(i.placement::text)
                 + coalesce(octet_length(i.status_reason::text), 0), $9) as bytes
             from instances i left join hosts h on h.id = i.host_id
             where i.tenant_id = $1 and i.id < $2 and ",
            $status,
            "
               and (i.deleted_at is null or i.deleted_at > now() - interval '24 hours')
               and ($4::text is null or i.name = $4) and i.labels @> all($5)
               and ($6::text is null or i.network_name = $6 or i.network_id::text = $6)
               and ($7::text is null or h.name = $7 or h.id::text = $7)
             order by i.id desc limit $8) i) i
             where i.page_bytes - i.bytes <= $9 order by i.id desc"
        )
    };
}

const LIST: &str = list_sql!("i.status <> 'deleted' and $3::text is null");
const LIST_OF_STATUS: &str = list_sql!("i.status = $3");

/// Instances, newest first; deleted ones only when asked for by status.
///
/// # Errors
/// As the database says.
pub async fn list(
    db: &DualDb,
    consistency: Consistency,
    filter: InstanceFilter,
    page: PageRequest,
) -> Result<Page<InstanceRecord>, DbError> {
    let filter = &filter;
    let sql = if filter.status.is_some() { LIST_OF_STATUS } else { LIST };
    let rows = db
        .read(consistency, |c| async move {
            c.query(
                sql,
                &[
                    &filter.tenant.uuid(),
                    &page.before.unwrap_or(Uuid::max()),
                    &filter.status,
                    &filter.name,
                    &filter.labels,
                    &filter.network,
                    &filter.host,
                    &page.rows(),
                    &PageRequest::BYTES_MAX,
                ],
            )
            .await
        })
        .await?;
    let rows = rows.iter().map(|row| (record(row), row.get("page_bytes")));
    Ok(page.finish(rows.collect(), |instance: &InstanceRecord| instance.id.uuid()))
}

/// The present status of many instances in one question, for those who wait.
///
/// # Errors
/// As the database says.
pub async fn statuses(db: &DualDb, ids: Vec<Uuid>) -> Result<Vec<(Uuid, String)>, DbError> {
    let ids = &ids;
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query("select id, status from instances where id = any($1)", &[ids]).await
        })
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What a host has to know of an instance to judge its container.
#[derive(Clone, Debug)]
pub struct Expected {
    pub id: InstanceId,
    pub status: String,
    pub generation: i64,
    pub restart_policy: String,
    pub restart_streak: i32,
    pub network: NetworkId,
    pub started_at: Option<OffsetDateTime>,
    /// Since `started_at`, by Postgres' clock.
    pub ran_for: Duration,
}

/// The instances placed on a host that are not deleted; `only`: of these.
///
/// # Errors
/// As the database says.
pub async fn expected_on(db: &DualDb, host: HostId, only: Option<Vec<InstanceId>>) -> Result<Vec<Expected>, DbError> {
    let only: Option<Vec<Uuid>> = only.map(|ids| ids.into_iter().map(InstanceId::uuid).collect());
    let only = &only;
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query(
                "select id, status, generation, restart_policy, restart_streak, network_id, started_at,
                   coalesce(extract(epoch from now() - started_at), 0)::float8 as ran_for_s
                 from instances
                 where host_id = $1 and status <> 'deleted' and ($2::uuid[] is null or id = any($2))",
                &[&host.uuid(), only],
            )
            .await
        })
        .await?;
    let expected = |row: &Row| Expected {
        id: InstanceId::from(row.get::<_, Uuid>("id")),
        status: row.get("status"),
        generation: row.get("generation"),
        restart_policy: row.get("restart_policy"),
        restart_streak: row.get("restart_streak"),
        network: NetworkId::from(row.get::<_, Uuid>("network_id")),
        started_at: row.get("started_at"),
        ran_for: Duration::from_secs_f64(row.get::<_, f64>("ran_for_s").max(0.0)),
    };
    Ok(rows.iter().map(expected).collect())
}

/// An instance that is not deleted.
#[derive(Clone, Debug)]
pub struct LiveInstance {
    pub id: InstanceId,
    /// The host it is placed on, and that host's name; `None`: not placed yet.
    pub host: Option<(HostId, String)>,
}

/// Returns those of these instances that are not deleted, whichever host they are placed on.
///
/// # Errors
/// `Unavailable` or `ReadOnly` when the primary cannot be asked; `Statement` for a bug.
pub async fn live_among(db: &DualDb, ids: Vec<InstanceId>) -> Result<Vec<LiveInstance>, DbError> {
    let ids: &Vec<Uuid> = &ids.into_iter().map(InstanceId::uuid).collect();
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query(
                "select i.id, h.id as host_id, h.name as host_name
                 from instances i left join hosts h on h.id = i.host_id
                 where i.id = any($1) and i.status <> 'deleted'",
                &[ids],
            )
            .await
        })
        .await?;
    let live = |row: &Row| LiveInstance {
        id: InstanceId::from(row.get::<_, Uuid>("id")),
        host: row.get::<_, Option<Uuid>>("host_id").map(HostId::from).zip(row.get("host_name")),
    };
    Ok(rows.iter().map(live).collect())
}

/// Reads `instance_columns`, `host_name` and `host_address`.
pub(in crate::core) fn record(row: &Row) -> InstanceRecord {
    let host: Option<Uuid> = row.get("host_id");
    let host_name: Option<String> = row.get("host_name");
    InstanceRecord {
        id: InstanceId::from(row.get::<_, Uuid>("id")),
        name: row.get("name"),
        tenant: TenantId::from(row.get::<_, Uuid>("tenant_id")),
        image: row.get("image"),
        command: row.get("command"),
        env: row.get("env"),
        cpu_millis: row.get("cpu_millis"),
        memory_mib: row.get("memory_mib"),
        network: NetworkId::from(row.get::<_, Uuid>("network_id")),
        network_name: row.get("network_name"),
        address: row.get("address"),
        mac: row.get("mac"),
        ports: row.get("ports"),
        labels: row.get("labels"),
        restart_policy: row.get("restart_policy"),
        placement: row.get("placement"),
        status: row.get("status"),
        status_reason: row.get("status_reason"),
        generation: row.get("generation"),
        host: host.zip(host_name).map(|(id, name)| (HostId::from(id), name, row.get("host_address"))),
        job: JobId::from(row.get::<_, Uuid>("job_id")),
        restart_count: row.get("restart_count"),
        exit_code: row.get("exit_code"),
        created_at: row.get("created_at"),
        updated_at: row.get("updated_at"),
        started_at: row.get("started_at"),
        finished_at: row.get("finished_at"),
    }
}
