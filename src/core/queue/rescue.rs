//! Ending what nobody else ends: expired leases, jobs that fit nowhere, hosts that fell silent.
//!
//! Every process runs it; rows that another one is reaping are skipped, so no leader is needed. After a restart of
//! Postgres leases are left alone for their own length: they are absolute times, and their holders were cut off too.

use std::time::Duration;

use super::claim::Lease;
use crate::{
    config::lease::LeaseTimes,
    core::{
        db::{DbError, DualDb, WriteConn},
        id::{BootId, HostId},
        instances::Transition,
        queue::job::JobKind,
    },
};

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rescued {
    pub expired_leases: usize,
    pub fail_unschedulable_jobs: usize,
    pub silent_instances: usize,
}

/// One round.
///
/// # Errors
/// As the database says.
pub async fn rescue_expired_leases(db: &DualDb, lease: Duration) -> Result<Rescued, DbError> {
    Ok(Rescued {
        expired_leases: expired_leases(db, lease).await?,
        fail_unschedulable_jobs: fail_unschedulable_jobs(db).await?,
        silent_instances: silent_hosts(db, lease).await?,
    })
}

macro_rules! requeue_sql {
    ($late:literal, $locked:literal) => {
        concat!(
            "with late as materialized (
  select i.id, i.desired, j.id as job_id, j.kind, j.crashes, j.max_crashes
  from jobs j join instances i on i.id = j.instance_id
  where j.status = 'running' and ",
            $late,
            "
  -- The job's row too: a heartbeat that came first has extended the lease.
  order by i.id limit 1000 for update of i, j ",
            $locked,
            "),
rescued as (
  update jobs j set
    status = t.becomes, finished_at = case when t.becomes <> 'queued' then now() end,
    error = case when t.becomes = 'failed' then jsonb_build_object(
      'code', 'attempts_exhausted', 'detail', 'the worker crashed or went away ' || j.crashes + 1 || ' times') end,
    crashes = j.crashes + 1, attempt = greatest(0, j.attempt - 1),
    run_at = now() + make_interval(secs => $1::float8 * least(60, 2 ^ least(j.crashes, 6)) * (0.5 + random())),
    lease_id = null, lease_boot = null, lease_until = null, deadline_at = null
  from late cross join lateral (
    select case when late.kind = 'delete' then 'queued'
                when late.desired = 'deleted' then 'superseded'
                when late.crashes + 1 >= late.max_crashes then 'failed'
                else 'queued' end as becomes) t
  where j.id = late.job_id
  returning j.id, j.instance_id, j.kind, j.status, j.error),
changed as (
  update instances i set status = t.becomes, status_reason = rescued.error, updated_at = now(), finished_at = now()
  from rescued, unnest($2::text[], $3::text[], $4::text[]) as t (kind, was, becomes)
  where rescued.status = 'failed' and i.id = rescued.instance_id and t.kind = rescued.kind and t.was = i.status
  returning i.tenant_id, i.id, rescued.id as job_id, i.status, i.status_reason),
event as (
  insert into events (tenant_id, instance_id, job_id, kind, detail)
  select tenant_id, id, job_id, 'instance.' || status, status_reason from changed)
select 1 from rescued"
        )
    };
}

const EXPIRED: &str = requeue_sql!(
    "(j.lease_until < now() or j.deadline_at + make_interval(secs => $5) < now())
   and pg_postmaster_start_time() < now() - make_interval(secs => $5 * 7 / 6)",
    "skip locked"
);

const OF_EARLIER_BOOTS: &str = requeue_sql!("j.host_id = $5 and j.lease_boot <> $6", "skip locked");

// Waits for a heartbeat that is under way, as a finish does: both lock the instance first, and a heartbeat locks none.
const CRASHED: &str = requeue_sql!("j.id = $5 and j.lease_token = $6 and j.lease_id = $7", "");

/// A lease that ran out is a crash of its worker, not an attempt of the job. Three crashes end it, but for a delete.
async fn expired_leases(db: &DualDb, lease: Duration) -> Result<usize, DbError> {
    let (kinds, was, becomes) = Transition::table_by_kind(Transition::Failed);
    let seconds = lease.as_secs_f64();
    let pause = LeaseTimes { lease }.crash_pause().as_secs_f64();
    let rows = db.write().await?.query(EXPIRED, &[&pause, &kinds, &was, &becomes, &seconds]).await?;
    Ok(rows.len())
}

/// Requeues or fails one job whose attempt crashed while the worker lives on, as when its lease had run out. `false`: the
/// lease was lost, and nothing was written.
///
/// # Errors
/// `Unavailable`, `Locked`, `RolledBack` or `ReadOnly`: the statement may be repeated; `Statement` for a bug.
pub async fn crashed(db: &DualDb, lease: Lease, lease_for: Duration) -> Result<bool, DbError> {
    let (kinds, was, becomes) = Transition::table_by_kind(Transition::Failed);
    let pause = LeaseTimes { lease: lease_for }.crash_pause().as_secs_f64();
    let (job, id) = (lease.job.uuid(), lease.id.uuid());
    let rows = db.write().await?.query(CRASHED, &[&pause, &kinds, &was, &becomes, &job, &lease.token, &id]).await?;
    Ok(!rows.is_empty())
}

/// Gives back at once what earlier boots of this host had claimed: nobody else may run it, and they are gone.
///
/// What is locked just now is left out. To wait for it would be a deadlock: a heartbeat that is under way holds its jobs and
/// waits for the host's row, which the boot holds. It is the last that extends these leases, for the next one finds
/// another boot here; so `expired_leases` takes what was left, a lease and a round of reaping later at the most. The same for
/// a claim that was under way.
pub(super) async fn requeue_earlier_boots(conn: &WriteConn, host: HostId, boot: BootId) -> Result<usize, DbError> {
    let (kinds, was, becomes) = Transition::table_by_kind(Transition::Failed);
    let rows = conn.query(OF_EARLIER_BOOTS, &[&0.0f64, &kinds, &was, &becomes, &host.uuid(), &boot.uuid()]).await?;
    Ok(rows.len())
}

/// A job that no host could ever hold fails at once, with each host's reason; one that waited too long for room, too.
async fn fail_unschedulable_jobs(db: &DualDb) -> Result<usize, DbError> {
    let (was, becomes) = Transition::Failed(JobKind::Provision).table();
    let rows = db
        .write()
        .await?
        .query(
            "with stuck as materialized (
               select i.id, j.id as job_id,
                 case when fits.possible then 'no host had room before the deadline'
                      -- The client's own text is in it, and one reason per host: one line of at most 2 KiB.
                      else left(regexp_replace('fits no host: ' || coalesce(fits.reasons, ''), '[[:cntrl:]]', ' ', 'g'), 500)
                 end as detail
               from jobs j join instances i on i.id = j.instance_id
               cross join lateral (
                 select bool_or(r.reason is null) as possible, count(*) as hosts,
                        string_agg(h.name || ': ' || r.reason, '; ' order by h.name) as reasons
                 from hosts h cross join lateral (
                   select nullif(concat_ws(', ',
                     case when i.cpu_millis > h.cpu_millis
                          then 'cpu_millis ' || i.cpu_millis || ' of ' || h.cpu_millis end,
                     case when i.memory_mib > h.memory_mib
                          then 'memory_mib ' || i.memory_mib || ' of ' || h.memory_mib end,
                     case when coalesce(i.placement ->> 'host', h.name) not in (h.name, h.id::text)
                          then 'placement asks for host ' || (i.placement ->> 'host') end,
                     case when not h.labels @> coalesce(i.placement -> 'labels', '{}')
                          then 'placement asks for other labels' end), '') as reason) r
                 where h.state not in ('fenced', 'retired')) fits
               where j.status = 'queued' and j.host_id is null and i.host_id is null
                 and fits.hosts > 0 and (not fits.possible or j.queue_deadline_at < now())
               limit 100 for update of i skip locked),
             failed as (
               update jobs j set status = 'failed', finished_at = now(),
                 error = jsonb_build_object('code', 'no_capacity', 'detail', stuck.detail)
               from stuck where j.id = stuck.job_id and j.status = 'queued' returning j.id, j.instance_id, j.error),
             changed as (
               update instances i set status = t.becomes, status_reason = failed.error, updated_at = now(), finished_at = now()
               from failed, unnest($1::text[], $2::text[]) as t (was, becomes)
               where i.id = failed.instance_id and t.was = i.status
               returning i.tenant_id, i.id, failed.id as job_id, i.status, i.status_reason),
             event as (
               insert into events (tenant_id, instance_id, job_id, kind, detail)
               select tenant_id, id, job_id, 'instance.' || status, status_reason from changed)
             select 1 from failed",
            &[&was, &becomes],
        )
        .await?;
    Ok(rows.len())
}

/// What a silent host runs is not known; what it should remove stays, and says why.
async fn silent_hosts(db: &DualDb, lease: Duration) -> Result<usize, DbError> {
    let (was, becomes) = Transition::HostSilent.table();
    let rows = db
        .write()
        .await?
        .query(
            "with silent as materialized (
               select i.id, t.becomes from instances i join hosts h on h.id = i.host_id
               join unnest($2::text[], $3::text[]) as t (was, becomes) on t.was = i.status
               where i.status <> 'deleted' and h.last_seen < now() - make_interval(secs => $1)
                 and (t.becomes <> t.was or i.status_reason is null)
                 and pg_postmaster_start_time() < now() - make_interval(secs => $1 * 7 / 6)
               limit 1000 for update of i skip locked)
             update instances i set status = silent.becomes, updated_at = now(),
               status_reason = jsonb_build_object('code', 'host_lost', 'detail', 'the host does not report')
             from silent where i.id = silent.id returning 1",
            &[&lease.as_secs_f64(), &was, &becomes],
        )
        .await?;
    Ok(rows.len())
}

/// Deletes what ended over 30 days ago, a batch at a time: jobs, and deleted instances with theirs.
///
/// # Errors
/// As the database says.
pub async fn forget_old(db: &DualDb) -> Result<(), DbError> {
    let conn = db.write().await?;
    conn.query(
        "delete from jobs where id = any(array(
           select id from jobs where finished_at < now() - interval '30 days' limit 1000))",
        &[],
    )
    .await?;
    conn.query(
        "delete from instances i where id = any(array(
           select id from instances where status = 'deleted' and deleted_at < now() - interval '30 days' limit 1000))",
        &[],
    )
    .await
    .map(drop)
}
