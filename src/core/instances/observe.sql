-- Writes what a host observed of a container outside any job, and queues a job that starts it again where the restart
-- policy asks for one. Returns one row; none when the instance changed since it was read, and then nothing is written.
--
-- $1  instance           uuid
-- $2  host               uuid
-- $3  status             text, as it was read
-- $4  generation         bigint, as it was read
-- $5  restart streak     integer, as it was read
-- $6  started_at         timestamptz, as it was read
-- $7  job                uuid, new
-- $8  kind               text, of that job
-- $9  restart pause      float8, seconds; null: no job is queued
-- $10 restart streak     integer, new
-- $11 exit code          bigint, null: unchanged
-- $12 reason             jsonb, null: none
-- $13 statuses           text[]
-- $14 next statuses      text[], what each of $13 becomes
with inst as materialized (
  select i.id from instances i
  where i.id = $1 and i.host_id = $2 and i.status = $3 and i.generation = $4 and i.restart_streak = $5
    and i.started_at is not distinct from $6
  for update),
job as (
  insert into jobs (id, kind, tenant_id, instance_id, host_id, generation, seq, run_at)
  select $7, $8, i.tenant_id, i.id, i.host_id, i.generation, i.next_seq, now() + make_interval(secs => $9)
  from instances i join inst using (id) where $9::float8 is not null
  returning id, instance_id),
changed as (
  update instances i set status = t.becomes, updated_at = now(), restart_streak = $10,
    exit_code = coalesce($11, i.exit_code),
    status_reason = case when t.becomes <> 'running' then $12::jsonb end,
    finished_at = case when t.becomes in ('stopped', 'failed') then now() else i.finished_at end,
    restart_count = i.restart_count + case when $9::float8 is null then 0 else 1 end,
    next_seq = i.next_seq + case when $9::float8 is null then 0 else 1 end
  from inst, unnest($13::text[], $14::text[]) as t (was, becomes)
  where i.id = inst.id and t.was = i.status
  returning i.tenant_id, i.id, i.status),
event as (
  insert into events (tenant_id, instance_id, kind, detail)
  select tenant_id, id, 'instance.' || status, coalesce($12::jsonb, '{}') from changed)
select 1 from changed
