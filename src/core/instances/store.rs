//! Reading instances. Statements that change them are in `create`, `delete`, `observe` and `core::queue`.
//!
//! Rows become typed records here. A value that is not in its type (a status that a newer release wrote, say) is an
//! error of its row: reading that instance fails with the instance's id and the column in the log, and lists leave it
//! out and log it.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use time::OffsetDateTime;
use tokio_postgres::types::Json;
use uuid::Uuid;

use super::{
    Reason, RestartPolicy, Status,
    spec::{Placement, Port},
};
use crate::core::{
    db::{Consistency, DbError, DualDb, Row, column, decode_each, decode_one},
    id::{HostId, InstanceId, JobId, NetworkId, TenantId},
    page::{Page, PageRequest},
};

/// An instance, as it is stored.
#[derive(Clone)]
pub struct InstanceRecord {
    /// Its id.
    pub id: InstanceId,
    /// Its name, unique among the tenant's instances that are not deleted.
    pub name: String,
    /// Its owner.
    pub tenant: TenantId,
    /// The reference of its image.
    pub image: String,
    /// Its command; `None`: the image's own.
    pub command: Option<Vec<String>>,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Its share of processors, in thousandths of a core.
    pub cpu_millis: i32,
    /// Its memory limit in MiB.
    pub memory_mib: i32,
    /// Its network.
    pub network: NetworkId,
    /// The name that its network had when it was accepted.
    pub network_name: String,
    /// Its address in the network.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: String,
    /// Its published ports.
    pub ports: Vec<Port>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether its process is started again after it ends.
    pub restart_policy: RestartPolicy,
    /// Where it may run.
    pub placement: Placement,
    /// Its status.
    pub status: Status,
    /// Why it has this status.
    pub status_reason: Option<Reason>,
    /// Grows with each accepted request that changes what should run.
    pub generation: i64,
    /// The host it is placed on; `None`: not placed yet.
    pub host: Option<HostRef>,
    /// The job of its newest accepted request.
    pub job: JobId,
    /// How often its process was started again by its restart policy.
    pub restart_count: i32,
    /// The exit code of its process, when that has ended.
    pub exit_code: Option<i64>,
    /// When it was accepted.
    pub created_at: OffsetDateTime,
    /// When it changed last.
    pub updated_at: OffsetDateTime,
    /// When its process was started last.
    pub started_at: Option<OffsetDateTime>,
    /// When its process ended, or when it failed or was deleted.
    pub finished_at: Option<OffsetDateTime>,
}

// `env` may hold the tenant's secrets.
impl std::fmt::Debug for InstanceRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InstanceRecord").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The host of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRef {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// Where its published ports are reached, where that is configured.
    pub address: Option<String>,
}

/// The filter of a list of instances.
#[derive(Clone, Debug)]
pub struct InstanceFilter {
    /// The owner.
    pub tenant: TenantId,
    /// Only this status; `None`: all but deleted ones.
    pub status: Option<Status>,
    /// Only this name.
    pub name: Option<String>,
    /// Only instances with all of these labels, each a name and a value.
    pub labels: Vec<(String, String)>,
    /// Only this network, by name or id.
    pub network: Option<String>,
    /// Only this host, by name or id.
    pub host: Option<String>,
}

const GET: &str = include_str!("get.sql");
const LIST: &str = include_str!("list.sql");
const LIST_BY_STATUS: &str = include_str!("list_by_status.sql");

/// Reads the tenant's instance from the primary; `None`: the tenant has none of this id, or it was deleted over 24 h ago.
///
/// # Errors
/// `Invariant` when the row cannot be read; others of `DualDb::read`.
pub async fn get(db: &DualDb, tenant: TenantId, id: InstanceId) -> Result<Option<InstanceRecord>, DbError> {
    let rows = db.read(Consistency::Primary, |c| async move { c.query(GET, &[&id, &tenant]).await }).await?;
    rows.first().map(record).transpose()
}

/// Lists instances, newest first.
///
/// # Errors
/// Those of `DualDb::read`. A row that cannot be read is logged and left out.
pub async fn list(
    db: &DualDb,
    consistency: Consistency,
    filter: &InstanceFilter,
    page: PageRequest,
) -> Result<Page<InstanceRecord>, DbError> {
    let labels: Vec<_> = filter.labels.iter().map(|(name, value)| Json(BTreeMap::from([(name, value)]))).collect();
    let labels = &labels;
    let rows = db
        .read(consistency, |c| async move {
            let InstanceFilter { tenant, status, name, labels: _, network, host } = filter;
            let (before, rows) = (page.before.unwrap_or(Uuid::max()), page.rows());
            let bytes = PageRequest::BYTES_MAX;
            match status {
                None => c.query(LIST, &[tenant, &before, name, labels, network, host, &rows, &bytes]).await,
                Some(status) => {
                    c.query(LIST_BY_STATUS, &[tenant, &before, name, labels, network, host, &rows, &bytes, status])
                        .await
                }
            }
        })
        .await?;
    page.decode(&rows, "instance", decode)
}

/// Reads the present status of many instances at once, for requests that wait for a change. A row that cannot be read is
/// logged and left out.
///
/// # Errors
/// Those of `DualDb::read`.
pub async fn statuses(db: &DualDb, ids: &[InstanceId]) -> Result<Vec<(InstanceId, Status)>, DbError> {
    let sql = "select id, status from instances where id = any($1)";
    let rows = db.read(Consistency::Primary, |c| async move { c.query(sql, &[&ids]).await }).await?;
    Ok(decode_each(&rows, "instance", |row| Ok((column(row, "id")?, column(row, "status")?))))
}

/// The part of an instance that its host compares with the container.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The instance.
    pub id: InstanceId,
    /// Its status.
    pub status: Status,
    /// Grows with each accepted request that changes what should run.
    pub generation: i64,
    /// Whether its process is started again after it ends.
    pub restart_policy: RestartPolicy,
    /// Restarts in a row after none of which its process kept running.
    pub restart_streak: i32,
    /// Its network.
    pub network: NetworkId,
    /// When its process was started last.
    pub started_at: Option<OffsetDateTime>,
    /// The time since `started_at`, by Postgres' clock.
    pub ran_for: Duration,
}

/// Reads the instances placed on a host that are not deleted; `only`: of these. A row that cannot be read is logged and left
/// out.
///
/// # Errors
/// Those of `DualDb::read`.
pub async fn expected_on(db: &DualDb, host: HostId, only: Option<Vec<InstanceId>>) -> Result<Vec<Expected>, DbError> {
    let only = &only;
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query(
                "select id, status, generation, restart_policy, restart_streak, network_id, started_at,
                   coalesce(extract(epoch from now() - started_at), 0)::float8 as ran_for_s
                 from instances
                 where host_id = $1 and status <> 'deleted' and ($2::uuid[] is null or id = any($2))",
                &[&host, only],
            )
            .await
        })
        .await?;
    let expected = |row: &Row| {
        Ok(Expected {
            id: column(row, "id")?,
            status: column(row, "status")?,
            generation: column(row, "generation")?,
            restart_policy: column(row, "restart_policy")?,
            restart_streak: column(row, "restart_streak")?,
            network: column(row, "network_id")?,
            started_at: column(row, "started_at")?,
            ran_for: Duration::from_secs_f64(column::<f64>(row, "ran_for_s")?.max(0.0)),
        })
    };
    Ok(decode_each(&rows, "instance", expected))
}

/// An instance that is not deleted, with its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedInstance {
    /// The instance.
    pub id: InstanceId,
    /// Its network.
    pub network: NetworkId,
}

/// Reads the ids of the instances placed on a host that are not deleted. It decodes ids only, so that a row that
/// `expected_on` cannot read still counts as the owner of its container and its network.
///
/// # Errors
/// Those of `DualDb::read`; `Invariant` for a row without ids.
pub async fn placed_on(db: &DualDb, host: HostId) -> Result<Vec<PlacedInstance>, DbError> {
    let sql = "select id, network_id from instances where host_id = $1 and status <> 'deleted'";
    let rows = db.read(Consistency::Primary, |c| async move { c.query(sql, &[&host]).await }).await?;
    let placed = |row| Ok(PlacedInstance { id: column(row, "id")?, network: column(row, "network_id")? });
    rows.iter().map(placed).collect()
}

/// An instance that is not deleted.
#[derive(Clone, Debug)]
pub struct LiveInstance {
    /// The instance.
    pub id: InstanceId,
    /// The host it is placed on, with its name; `None`: not placed yet.
    pub host: Option<(HostId, String)>,
}

/// Reads those of these instances that are not deleted, whichever host they are placed on.
///
/// # Errors
/// Those of `DualDb::read`; `Invariant` for a row that cannot be read, since a caller removes what it does not find.
pub async fn live_among(db: &DualDb, ids: Vec<InstanceId>) -> Result<Vec<LiveInstance>, DbError> {
    let ids = &ids;
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
    let live = |row| {
        let host: Option<HostId> = column(row, "host_id")?;
        Ok(LiveInstance { id: column(row, "id")?, host: host.zip(column(row, "host_name")?) })
    };
    rows.iter().map(live).collect()
}

/// Reads the columns of an instance, `host_name` and `host_address`.
///
/// # Errors
/// `Invariant`, with the instance's id and the column.
pub(super) fn record(row: &Row) -> Result<InstanceRecord, DbError> {
    decode_one(row, "instance", decode)
}

fn decode(row: &Row) -> Result<InstanceRecord, DbError> {
    let host: Option<HostId> = column(row, "host_id")?;
    let host_name: Option<String> = column(row, "host_name")?;
    let address: Option<String> = column(row, "host_address")?;
    Ok(InstanceRecord {
        id: column(row, "id")?,
        name: column(row, "name")?,
        tenant: column(row, "tenant_id")?,
        image: column(row, "image")?,
        command: column::<Option<Json<_>>>(row, "command")?.map(|json| json.0),
        env: column::<Json<_>>(row, "env")?.0,
        cpu_millis: column(row, "cpu_millis")?,
        memory_mib: column(row, "memory_mib")?,
        network: column(row, "network_id")?,
        network_name: column(row, "network_name")?,
        address: column(row, "address")?,
        mac: column(row, "mac")?,
        ports: column::<Json<_>>(row, "ports")?.0,
        labels: column::<Json<_>>(row, "labels")?.0,
        restart_policy: column(row, "restart_policy")?,
        placement: column::<Json<_>>(row, "placement")?.0,
        status: column(row, "status")?,
        status_reason: column::<Option<Json<_>>>(row, "status_reason")?.map(|json| json.0),
        generation: column(row, "generation")?,
        host: host.zip(host_name).map(|(id, name)| HostRef { id, name, address }),
        job: column(row, "job_id")?,
        restart_count: column(row, "restart_count")?,
        exit_code: column(row, "exit_code")?,
        created_at: column(row, "created_at")?,
        updated_at: column(row, "updated_at")?,
        started_at: column(row, "started_at")?,
        finished_at: column(row, "finished_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::{LIST, LIST_BY_STATUS};

    #[test]
    fn both_lists_differ_in_their_status_condition_only() {
        let body = |sql: &'static str| {
            let at = sql.find("\nselect ").expect("a statement after the header");
            sql[at..].to_owned()
        };
        let by_status = "i.status = $9\n      and (i.deleted_at is null or i.deleted_at > now() - interval '24 hours')";

        assert_eq!(body(LIST_BY_STATUS).replace(by_status, "i.status <> 'deleted'"), body(LIST));
    }
}
