//! Claiming jobs, with placement: one statement for a whole batch.
//!
//! A job is claimable by a host when it is due, no older job of its instance is unfinished, and its instance lives here
//! or nowhere yet and fits. Deletes come first; then the next slot goes to the tenant that has the fewest here, so that no
//! tenant gets more while another one with fewer waits. The caller must not run two claims of one host at once: the sum of
//! what is committed here is read and added to in one statement, but not locked.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use cidr::{IpCidr, Ipv4Cidr};
use serde_json::Value;
use uuid::Uuid;

use crate::core::{
    db::{DbError, DualDb, Row, column},
    id::{BootId, HostId, InstanceId, JobId, LeaseId, NetworkId},
    instances::{Transition, spec::Port},
    queue::job::JobKind,
};

/// The worker that claims: one run of one process on one host.
#[derive(Clone, Copy, Debug)]
pub struct WorkerIdentity {
    pub host: HostId,
    pub boot: BootId,
    pub epoch: i64,
    /// Jobs that it runs at a time.
    pub slots: usize,
}

/// Proof of one claim: every later statement about the job must show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub job: JobId,
    pub instance: InstanceId,
    /// Grows with each claim of the job.
    pub token: i64,
    pub id: LeaseId,
}

/// A job that is ours until its lease ends, with all that is needed to do it.
#[derive(Clone)]
pub struct Claimed {
    pub lease: Lease,
    pub kind: JobKind,
    /// The HTTP request that made the job; `None`: no request did.
    pub request_id: Option<String>,
    pub attempt: u32,
    pub max_attempts: u32,
    pub crashes: u32,
    /// The owner wants the instance gone: anything but a delete has nothing to do.
    pub deletion_requested: bool,
    pub generation: i64,
    pub image: String,
    pub command: Option<Vec<String>>,
    pub env: BTreeMap<String, String>,
    pub cpu_millis: i32,
    pub memory_mib: i32,
    pub network: NetworkId,
    pub cidr: Ipv4Cidr,
    pub address: Ipv4Addr,
    pub mac: String,
    pub ports: Vec<Port>,
    /// Since it was due, at the time of the claim.
    pub waited: Duration,
    /// Since it was accepted, at the time of the claim.
    pub age: Duration,
}

/// What one claim brought.
pub struct Batch {
    pub jobs: Vec<Claimed>,
    /// Whether jobs that this host could run may be left: claim again as soon as there is a slot.
    pub more: bool,
}

// `env` may hold the tenant's secrets.
impl std::fmt::Debug for Claimed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claimed").field("lease", &self.lease).finish_non_exhaustive()
    }
}

// A loose scan over the tenants that wait, then the first few of each that can go. The fewer tenants, the more of each;
// of deletes as many as there are slots, since they go first. What cannot go now (too big, for another host) is looked
// past, but not without end: neither it nor a long backlog may make this statement slow.
const CLAIM: &str = "with recursive me as materialized (
  select h.id, h.name, h.state, h.labels, h.cpu_millis, h.memory_mib from hosts h
  where h.id = $1 and h.current_boot = $2 and h.epoch = $3 and h.state in ('active', 'draining')
    and not exists (select from queue_control q where q.paused and q.scope in ('all', 'host:' || h.id::text))),
load as materialized (
  select coalesce(sum(i.cpu_millis), 0) as cpu, coalesce(sum(i.memory_mib), 0) as memory
  from instances i where i.host_id = $1 and i.status <> 'deleted'),
busy as (
  select tenant_id, count(*) as running from jobs where lease_boot = $2 and status = 'running' group by tenant_id),
tenant (id) as (
  (select tenant_id from jobs where status = 'queued' order by tenant_id limit 1)
  union all
  select (select j.tenant_id from jobs j where j.status = 'queued' and j.tenant_id > t.id order by j.tenant_id limit 1)
  from tenant t where t.id is not null),
share as materialized (
  select greatest(1, 2 * $5::bigint / n) as taken, greatest(100, 10000 / n) as looked_at
  from (select greatest(1, count(id)) as n from tenant) t),
eligible as materialized (
  select e.id, e.instance_id, e.tenant_id, e.urgent, e.run_at, e.unplaced, e.cpu, e.memory
  from tenant t cross join share
  cross join lateral (values (true, $5::bigint), (false, share.taken)) as class (urgent, taken)
  cross join lateral (
    select j.id, j.instance_id, j.tenant_id, j.urgent, j.run_at, i.host_id is null as unplaced,
      case when i.host_id is null then i.cpu_millis else 0 end as cpu,
      case when i.host_id is null then i.memory_mib else 0 end as memory
    from (select id, instance_id, tenant_id, urgent, run_at, seq, kind from jobs
          where status = 'queued' and tenant_id = t.id and urgent = class.urgent and run_at <= now()
            and (host_id is null or host_id = $1)
          order by run_at limit share.looked_at) j
    join instances i on i.id = j.instance_id cross join me cross join load
    where j.kind = any($4) and (me.state = 'active' or j.urgent)
      and not exists (select from jobs o where o.instance_id = j.instance_id and o.seq < j.seq
                      and o.status in ('queued', 'running'))
      and (i.host_id = me.id
           or i.host_id is null
              and coalesce(i.placement ->> 'host', me.name) in (me.name, me.id::text)
              and me.labels @> coalesce(i.placement -> 'labels', '{}')
              and (me.cpu_millis is null or load.cpu + i.cpu_millis <= me.cpu_millis)
              and (me.memory_mib is null or load.memory + i.memory_mib <= me.memory_mib))
    order by j.run_at limit class.taken) e),
turns as (
  select e.id, e.instance_id, e.urgent, e.run_at, e.unplaced, e.cpu, e.memory,
    coalesce(b.running, 0) + row_number() over (partition by e.tenant_id order by e.urgent desc, e.run_at, e.id) as turn,
    count(*) over (partition by e.tenant_id) as of_tenant
  from eligible e left join busy b using (tenant_id)),
summed as (
  select t.id, t.instance_id, t.urgent, t.run_at, t.unplaced, t.turn, sum(cpu) over w as cpu_sum, sum(memory) over w as memory_sum
  from turns t window w as (order by urgent desc, turn, run_at, id rows unbounded preceding)),
chosen as materialized (
  select s.id, s.instance_id, s.urgent, s.turn, s.run_at from summed s cross join me cross join load
  where not s.unplaced
     or (me.cpu_millis is null or load.cpu + s.cpu_sum <= me.cpu_millis)
        and (me.memory_mib is null or load.memory + s.memory_sum <= me.memory_mib)
  order by s.urgent desc, s.turn, s.run_at, s.id limit 2 * $5::bigint),
-- Both rows, and none that somebody else holds: what was waited for may be another's by now, and whoever waits for one
-- while holding many is half of a deadlock. Twice as many were chosen, so that a host that claims at the same time leaves
-- some.
locked as materialized (
  select j.id from chosen c join jobs j on j.id = c.id join instances i on i.id = c.instance_id
  where j.status = 'queued' and j.run_at <= now() and (i.host_id is null or i.host_id = $1)
  order by c.urgent desc, c.turn, c.run_at, c.id limit $5 for update of i, j skip locked),
claimed as (
  update jobs j set status = 'running', attempt = j.attempt + 1, host_id = $1,
    lease_token = j.lease_token + 1, lease_id = $6, lease_boot = $2, lease_until = now() + make_interval(secs => $7),
    deadline_at = now() + make_interval(secs => $8), started_at = coalesce(j.started_at, now())
  from locked l where j.id = l.id
  returning j.id, j.instance_id, j.kind, j.attempt, j.max_attempts, j.crashes, j.lease_token, j.run_at, j.created_at,
    j.request_id),
placed as (
  update instances i set host_id = $1, updated_at = now(),
    status = coalesce((select t.becomes from unnest($9::text[], $10::text[], $11::text[]) as t (kind, was, becomes)
                       where t.kind = c.kind and t.was = i.status), i.status)
  from claimed c where i.id = c.instance_id
  returning i.id, i.desired, i.generation, i.image, i.command, i.env, i.cpu_millis, i.memory_mib, i.network_id, i.cidr,
    i.address, i.mac, i.ports),
-- Something was left, or a tenant may have more than was looked for.
left_over as (
  select count(*) > (select count(*) from claimed) or max(of_tenant) >= (select taken from share) as more from turns)
select j.id as job_id, j.kind, j.attempt, j.max_attempts, j.crashes, j.lease_token, j.request_id,
  extract(epoch from now() - j.run_at)::float8 as waited_s, extract(epoch from now() - j.created_at)::float8 as age_s,
  i.id, i.desired, i.generation, i.image, i.command, i.env, i.cpu_millis, i.memory_mib, i.network_id, i.cidr, i.address,
  i.mac, i.ports, left_over.more
from left_over left join (claimed j join placed i on i.id = j.instance_id) on true";

/// Claims at most `free` jobs, in the order that the module's header states. An error means that the outcome is unknown:
/// `recover` asks.
///
/// # Errors
/// As the database says.
pub async fn claim(
    db: &DualDb,
    me: WorkerIdentity,
    free: usize,
    lease: LeaseId,
    times: (Duration, Duration),
) -> Result<Batch, DbError> {
    let (kinds, was, becomes) = Transition::table_by_kind(Transition::Claimed);
    let known: Vec<&str> = JobKind::ALL.iter().map(|kind| kind.as_str()).collect();
    let rows = db
        .write()
        .await?
        .query(
            CLAIM,
            &[
                &me.host.uuid(),
                &me.boot.uuid(),
                &me.epoch,
                &known,
                &i64::try_from(free).unwrap_or(i64::MAX),
                &lease.uuid(),
                &times.0.as_secs_f64(),
                &times.1.as_secs_f64(),
                &kinds,
                &was,
                &becomes,
            ],
        )
        .await?;
    // One row at least: without a job where none was claimed.
    let more = rows.first().and_then(|row| row.get::<_, Option<bool>>("more")).unwrap_or_default();
    Ok(Batch { jobs: readable(&rows, lease), more })
}

/// What a claim whose answer was lost had taken.
///
/// # Errors
/// As the database says.
pub async fn recover(db: &DualDb, me: WorkerIdentity, lease: LeaseId) -> Result<Vec<Claimed>, DbError> {
    let rows = db
        .write()
        .await?
        .query(
            "select j.id as job_id, j.kind, j.attempt, j.max_attempts, j.crashes, j.lease_token, j.request_id,
               extract(epoch from now() - j.run_at)::float8 as waited_s,
               extract(epoch from now() - j.created_at)::float8 as age_s,
               i.id, i.desired, i.generation, i.image, i.command, i.env, i.cpu_millis, i.memory_mib, i.network_id, i.cidr,
               i.address, i.mac, i.ports
             from jobs j join instances i on i.id = j.instance_id
             where j.lease_id = $1 and j.lease_boot = $2 and j.status = 'running'",
            &[&lease.uuid(), &me.boot.uuid()],
        )
        .await?;
    Ok(readable(&rows, lease))
}

/// A row that this version cannot read is that one job's misfortune: its lease runs out, and after a few times it is
/// failed. The others of the batch go ahead.
fn readable(rows: &[Row], lease: LeaseId) -> Vec<Claimed> {
    let read = |row: &Row| {
        let job: Uuid = row.get::<_, Option<Uuid>>("job_id")?;
        claimed(row, lease).inspect_err(|error| tracing::error!(%error, %job, "cannot read a job")).ok()
    };
    rows.iter().filter_map(read).collect()
}

fn claimed(row: &Row, lease: LeaseId) -> Result<Claimed, DbError> {
    let broken = |what: &str| DbError::Invariant(format!("job row: {what}"));
    let address: std::net::IpAddr = row.get("address");
    let (std::net::IpAddr::V4(address), IpCidr::V4(cidr)) = (address, row.get("cidr")) else {
        return Err(broken("not an IPv4 network"));
    };
    let number = |name: &str| u32::try_from(row.get::<_, i32>(name)).unwrap_or_default();
    let seconds = |name: &str| Duration::from_secs_f64(row.get::<_, f64>(name).max(0.0));
    let json = |name: &str| row.get::<_, Option<Value>>(name).unwrap_or_default();
    Ok(Claimed {
        lease: Lease {
            job: row.get::<_, Uuid>("job_id").into(),
            instance: row.get::<_, Uuid>("id").into(),
            token: row.get("lease_token"),
            id: lease,
        },
        kind: row.get::<_, &str>("kind").parse().map_err(|_| broken("kind"))?,
        request_id: column(row, "request_id")?,
        attempt: number("attempt"),
        max_attempts: number("max_attempts"),
        crashes: number("crashes"),
        deletion_requested: row.get::<_, &str>("desired") == "deleted",
        generation: row.get("generation"),
        image: row.get("image"),
        command: serde_json::from_value(json("command")).map_err(|_| broken("command"))?,
        env: serde_json::from_value(json("env")).map_err(|_| broken("env"))?,
        cpu_millis: row.get("cpu_millis"),
        memory_mib: row.get("memory_mib"),
        network: row.get::<_, Uuid>("network_id").into(),
        cidr,
        address,
        mac: row.get("mac"),
        ports: serde_json::from_value(json("ports")).map_err(|_| broken("ports"))?,
        waited: seconds("waited_s"),
        age: seconds("age_s"),
    })
}
