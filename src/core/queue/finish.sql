-- Ends an attempt of a job and changes its instance with it. Returns no row, and writes nothing, if the lease is lost.
-- $1 instance uuid
-- $2 job uuid
-- $3 lease_token int8
-- $4 lease_id uuid
-- $5 status text
-- $6 steps jsonb
-- $7 reason jsonb
-- $8 attempts_returned int4
-- $9 retry_after_s float8
-- $10 container_id text
-- $11 transition_from text[]
-- $12 transition_to text[]
with inst as materialized (select id from instances where id = $1 for update),
done as (
  -- A retry is cancelled instead when a delete was accepted meanwhile: the delete would wait for the back-off.
  update jobs j set
    status = case when $5 = 'queued' and j.cancel_requested_at is not null then 'cancelled' else $5 end,
    steps = $6, error = $7, attempt = greatest(0, j.attempt - $8),
    run_at = case when $5 = 'queued' then now() + make_interval(secs => $9) else j.run_at end,
    lease_id = null, lease_boot = null, lease_until = null, deadline_at = null,
    finished_at = case when $5 = 'queued' and j.cancel_requested_at is null then null else now() end
  from inst
  where j.id = $2 and j.instance_id = inst.id and j.status = 'running' and j.lease_token = $3 and j.lease_id = $4
  returning j.id, j.instance_id, j.generation),
changed as (
  update instances i set
    status = t.becomes, updated_at = now(),
    observed_generation = greatest(i.observed_generation, done.generation),
    container_id = coalesce($10, i.container_id),
    status_reason = case when t.becomes = 'failed' then $7 end,
    started_at = case when t.becomes = 'running' then now() else i.started_at end,
    exit_code = case when t.becomes = 'running' then null else i.exit_code end,
    finished_at = case when t.becomes = 'running' then null
                       when t.becomes in ('failed', 'deleted') then now() else i.finished_at end,
    deleted_at = case when t.becomes = 'deleted' then now() end
  from done, unnest($11::text[], $12::text[]) as t (was, becomes)
  where i.id = done.instance_id and t.was = i.status
  returning i.id, i.tenant_id, i.status),
address as (delete from addresses a using changed c where a.instance_id = c.id and c.status = 'deleted'),
port as (delete from published_ports p using changed c where p.instance_id = c.id and c.status = 'deleted'),
event as (
  insert into events (tenant_id, instance_id, job_id, kind, detail)
  select c.tenant_id, c.id, $2, 'instance.' || c.status, coalesce($7, '{}') from changed c)
select 1 from done
