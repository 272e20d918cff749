-- Accepts a request to delete an instance: writes the idempotency record, supersedes the instance's queued jobs, asks
-- its running one to stop, and inserts the delete job. An instance that no host ever had is deleted at once. Returns
-- the instance with `is_new` (this request began the delete) and `replayed` (the idempotency record existed already); no
-- row when the tenant has no such instance.
--
-- Refused with delete_retry when a job was added while the statement waited for the lock; the caller then repeats it.
--
-- $1  tenant             uuid
-- $2  instance           uuid
-- $3  job                uuid, new
-- $4  idempotency key    text, null: none was sent
-- $5  route              text, of the idempotency record
-- $6  request hash       bytea, of the idempotency record
-- $7  statuses           text[], of a placed instance
-- $8  next statuses      text[], what each of $7 becomes
-- $9  statuses           text[], of an instance that was never placed
-- $10 next statuses      text[], what each of $9 becomes
-- $11 request id         text, null: no HTTP request
with inst as materialized (
  select i.id, i.name, i.tenant_id, i.image, i.command, i.env, i.cpu_millis, i.memory_mib, i.network_id, i.network_name,
    i.address, i.mac, i.ports, i.labels, i.restart_policy, i.placement, i.status, i.status_reason, i.generation,
    i.host_id, i.job_id, i.restart_count, i.exit_code, i.created_at, i.updated_at, i.started_at, i.finished_at,
    i.desired, i.next_seq
  from instances i
  where i.id = $2 and i.tenant_id = $1 and (i.deleted_at is null or i.deleted_at > now() - interval '24 hours')
  for update),
idem as (
  insert into idempotency (tenant_id, route, key, request_hash, answer)
  select $1, $5, $4, $6,
    jsonb_build_object('instance_id', id, 'job_id', case when desired = 'deleted' then job_id else $3::uuid end)
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
    and case when next_seq <> (select s.next_seq from instances s where s.id = inst.id)
             then app_refuse('delete_retry', '') else true end),
earlier as (
  update jobs j set cancel_requested_at = now(),
    status = case when j.status = 'queued' then 'superseded' else j.status end,
    finished_at = case when j.status = 'queued' then now() end
  from todo where j.instance_id = todo.id and j.status in ('queued', 'running')),
job as (
  insert into jobs (id, kind, tenant_id, instance_id, host_id, generation, seq, status, started_at, finished_at,
                    request_id)
  select $3, 'delete', tenant_id, id, host_id, generation + 1, next_seq,
    case when host_id is null then 'succeeded' else 'queued' end,
    case when host_id is null then now() end, case when host_id is null then now() end, $11
  from todo),
changed as (
  update instances i set desired = 'deleted', status = todo.becomes, status_reason = null, job_id = $3,
    generation = i.generation + 1, next_seq = i.next_seq + 1, updated_at = now(),
    deleted_at = case when todo.becomes = 'deleted' then now() end,
    finished_at = case when todo.becomes = 'deleted' then now() else i.finished_at end
  from todo where i.id = todo.id
  returning i.id, i.name, i.tenant_id, i.image, i.command, i.env, i.cpu_millis, i.memory_mib, i.network_id,
    i.network_name, i.address, i.mac, i.ports, i.labels, i.restart_policy, i.placement, i.status, i.status_reason,
    i.generation, i.host_id, i.job_id, i.restart_count, i.exit_code, i.created_at, i.updated_at, i.started_at,
    i.finished_at),
address as (delete from addresses a using todo where a.instance_id = todo.id and todo.host_id is null),
port as (delete from published_ports p using todo where p.instance_id = todo.id and todo.host_id is null),
event as (
  insert into events (tenant_id, instance_id, job_id, kind)
  select tenant_id, id, $3, case when becomes = 'deleted' then 'instance.deleted' else 'instance.deleting' end
  from todo)
select i.id, i.name, i.tenant_id, i.image, i.command, i.env, i.cpu_millis, i.memory_mib, i.network_id, i.network_name,
  i.address, i.mac, i.ports, i.labels, i.restart_policy, i.placement, i.status, i.status_reason, i.generation,
  i.host_id, i.job_id, i.restart_count, i.exit_code, i.created_at, i.updated_at, i.started_at, i.finished_at,
  h.name as host_name, h.address as host_address,
  exists (select from changed) as is_new, $4::text is not null and not exists (select from idem) as replayed
from (
  select i.id, i.name, i.tenant_id, i.image, i.command, i.env, i.cpu_millis, i.memory_mib, i.network_id, i.network_name,
    i.address, i.mac, i.ports, i.labels, i.restart_policy, i.placement, i.status, i.status_reason, i.generation,
    i.host_id, i.job_id, i.restart_count, i.exit_code, i.created_at, i.updated_at, i.started_at, i.finished_at
  from changed i
  union all
  select i.id, i.name, i.tenant_id, i.image, i.command, i.env, i.cpu_millis, i.memory_mib, i.network_id, i.network_name,
    i.address, i.mac, i.ports, i.labels, i.restart_policy, i.placement, i.status, i.status_reason, i.generation,
    i.host_id, i.job_id, i.restart_count, i.exit_code, i.created_at, i.updated_at, i.started_at, i.finished_at
  from inst i where not exists (select from changed)) i
left join hosts h on h.id = i.host_id
