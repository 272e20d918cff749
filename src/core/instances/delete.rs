//! Accepting `DELETE /instances/{id}`: one statement.
//!
//! Older queued jobs are superseded, a running one is asked to stop, and a delete job is queued for the instance's host;
//! an instance that no host ever had is gone at once. Repeated, it answers the same job.

use super::create::AcceptError;
use crate::core::idempotency::{self, IdempotencyKey, NoReplay};
use crate::core::{
    db::{DbError, DualDb, Param},
    id::{HostId, InstanceId, JobId, TenantId},
    instances::{
        Transition,
        store::{self, InstanceRecord, instance_columns},
    },
};

/// An accepted delete.
#[derive(Debug)]
pub struct Deletion {
    pub instance: InstanceRecord,
    pub job: JobId,
    /// Whom to ring; `None`: nobody, it is done already.
    pub host: Option<HostId>,
    pub replayed: bool,
}

/// Each one that is not the last was overtaken by a job that a host added.
const TRIES: usize = 5;

const SQL: &str = concat!(
    "
with inst as materialized (
  select ",
    instance_columns!(),
    ", i.desired, i.next_seq
  from instances i
  where i.id = $2 and i.tenant_id = $1 and (i.deleted_at is null or i.deleted_at > now() - interval '24 hours')
  for update),
idem as (
  insert into idempotency (tenant_id, route, key, request_hash, answer)
  select $1, $5, $4, $6, jsonb_build_object('instance_id', id, 'job_id', case when desired = 'deleted' then job_id else $3::uuid end)
  from inst where $4::text is not null
  on conflict (tenant_id, route, key) do update
    set request_hash = excluded.request_hash, answer = excluded.answer, created_at = now()
    where idempotency.created_at < now() - interval '24 hours'
  returning 1),
todo as materialized (
  select id, tenant_id, host_id, generation, next_seq,
         case when host_id is null then ($10::text[])[array_position($9::text[], status)]
              else ($8::text[])[array_position($7::text[], status)] end as becomes
  from inst where desired <> 'deleted' and ($4::text is null or exists (select from idem))
    -- This statement does not see a job that was added while it waited for the lock; the next one does.
    and case when next_seq <> (select s.next_seq from instances s where s.id = inst.id) then app_refuse('delete_retry', '')
             else true end),
earlier as (
  update jobs j set cancel_requested_at = now(),
    status = case when j.status = 'queued' then 'superseded' else j.status end,
    finished_at = case when j.status = 'queued' then now() end
  from todo where j.instance_id = todo.id and j.status in ('queued', 'running')),
job as (
  insert into jobs (id, kind, tenant_id, instance_id, host_id, generation, seq, status, started_at, finished_at)
  select $3, 'delete', tenant_id, id, host_id, generation + 1, next_seq,
         case when host_id is null then 'succeeded' else 'queued' end,
         case when host_id is null then now() end, case when host_id is null then now() end
  from todo),
changed as (
  update instances i set desired = 'deleted', status = todo.becomes, status_reason = null, job_id = $3,
    generation = i.generation + 1, next_seq = i.next_seq + 1, updated_at = now(),
    deleted_at = case when todo.becomes = 'deleted' then now() end,
    finished_at = case when todo.becomes = 'deleted' then now() else i.finished_at end
  from todo where i.id = todo.id returning ",
    instance_columns!(),
    "),
address as (delete from addresses a using todo where a.instance_id = todo.id and todo.host_id is null),
port as (delete from published_ports p using todo where p.instance_id = todo.id and todo.host_id is null),
event as (
  insert into events (tenant_id, instance_id, job_id, kind)
  select tenant_id, id, $3, case when becomes = 'deleted' then 'instance.deleted' else 'instance.deleting' end from todo)
select ",
    instance_columns!(),
    ", h.name as host_name, h.address as host_address,
       exists (select from changed) as fresh, $4::text is not null and not exists (select from idem) as replayed
from (select ",
    instance_columns!(),
    " from changed i
      union all
      select ",
    instance_columns!(),
    " from inst i where not exists (select from changed)) i
left join hosts h on h.id = i.host_id"
);

/// Accepts the delete; `None`: the tenant has no such instance.
///
/// # Errors
/// `AcceptError::Key…` about the idempotency key, or `Db`.
pub async fn delete(
    db: &DualDb,
    tenant: TenantId,
    instance: InstanceId,
    idempotency: Option<&IdempotencyKey>,
) -> Result<Option<Deletion>, AcceptError> {
    let (placed, placed_to) = Transition::DeleteAccepted.table();
    let (unplaced, unplaced_to) = Transition::DeleteAcceptedUnplaced.table();
    let job = JobId::new();
    let params: &[Param<'_>] = &[
        &tenant.uuid(),
        &instance.uuid(),
        &job.uuid(),
        &idempotency.map(|key| key.key.as_str()),
        &idempotency.map_or("", |key| key.route.as_str()),
        &idempotency.map_or(&[][..], |key| key.request_hash.as_slice()),
        &placed,
        &placed_to,
        &unplaced,
        &unplaced_to,
    ];
    let mut tries = 0..TRIES;
    let rows = loop {
        match db.write().await.map_err(AcceptError::Db)?.query(SQL, params).await {
            Ok(rows) => break rows,
            Err(DbError::Refused { code, .. }) if code == "delete_retry" && tries.next().is_some() => {}
            Err(DbError::Locked) if idempotency.is_some() => return Err(AcceptError::KeyInProgress),
            Err(error) => return Err(AcceptError::Db(error)),
        }
    };
    let Some(row) = rows.first() else { return Ok(None) };
    let record = store::record(row);
    if row.get("replayed")
        && let Some(key) = idempotency
    {
        let replay = idempotency::read(db, tenant, key).await.map_err(AcceptError::Db)?;
        let replay = replay.map_err(|no| match no {
            NoReplay::Reused => AcceptError::KeyReused,
            NoReplay::InProgress => AcceptError::KeyInProgress,
        })?;
        return Ok(Some(Deletion { instance: record, job: replay.job, host: None, replayed: true }));
    }
    let fresh: bool = row.get("fresh");
    let host = record.host.as_ref().map(|(id, ..)| *id).filter(|_| fresh);
    Ok(Some(Deletion { job: record.job, host, instance: record, replayed: false }))
}
