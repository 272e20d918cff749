-- Requeues, supersedes or fails at most 1000 jobs whose lease or deadline has passed. Returns a row for each.
-- From `rescued` on the same as the other rescue_*.sql (a unit test compares them).
-- $1 backoff_unit_s float8
-- $2 transition_kind text[]
-- $3 transition_from text[]
-- $4 transition_to text[]
-- $5 failure_code text
-- $6 lease_s float8
-- $7 restart_grace_s float8
with abandoned as materialized (
  select i.id, i.desired, j.id as job_id, j.kind, j.crashes, j.max_crashes
  from jobs j join instances i on i.id = j.instance_id
  where j.status = 'running' and (j.lease_until < now() or j.deadline_at + make_interval(secs => $6) < now())
    and pg_postmaster_start_time() < now() - make_interval(secs => $7)
  -- The job's row is locked too: the lease is read again after a heartbeat that came first has extended it.
  order by i.id limit 1000 for update of i, j skip locked),
rescued as (
  update jobs j set
    status = t.becomes, finished_at = case when t.becomes <> 'queued' then now() end,
    error = case when t.becomes = 'failed' then jsonb_build_object(
      'code', $5::text, 'detail', 'the worker crashed or went away ' || j.crashes + 1 || ' times') end,
    crashes = j.crashes + 1, attempt = greatest(0, j.attempt - 1),
    run_at = now() + make_interval(secs => $1::float8 * least(60, 2 ^ least(j.crashes, 6)) * (0.5 + random())),
    lease_id = null, lease_boot = null, lease_until = null, deadline_at = null
  from abandoned cross join lateral (
    select case when abandoned.kind = 'delete' then 'queued'
                when abandoned.desired = 'deleted' then 'superseded'
                when abandoned.crashes + 1 >= abandoned.max_crashes then 'failed'
                else 'queued' end as becomes) t
  where j.id = abandoned.job_id
  returning j.id, j.instance_id, j.kind, j.status, j.error),
changed as (
  update instances i set status = t.becomes, status_reason = rescued.error, updated_at = now(), finished_at = now()
  from rescued, unnest($2::text[], $3::text[], $4::text[]) as t (kind, was, becomes)
  where rescued.status = 'failed' and i.id = rescued.instance_id and t.kind = rescued.kind and t.was = i.status
  returning i.tenant_id, i.id, rescued.id as job_id, i.status, i.status_reason),
event as (
  insert into events (tenant_id, instance_id, job_id, kind, detail)
  select tenant_id, id, job_id, 'instance.' || status, status_reason from changed)
select 1 from rescued
