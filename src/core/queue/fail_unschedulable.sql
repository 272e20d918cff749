-- Fails at most 100 queued jobs that no host could ever hold (with each host's reason) or that waited for room until
-- their queue deadline. Returns a row for each.
-- $1 transition_from text[]
-- $2 transition_to text[]
-- $3 failure_code text
with stuck as materialized (
  select i.id, j.id as job_id,
    case when fits.possible then 'no host had room before the deadline'
         -- The detail contains text of the client and one reason per host: cut to one line of at most 2 KiB.
         else left(regexp_replace('fits no host: ' || coalesce(fits.reasons, ''), '[[:cntrl:]]', ' ', 'g'), 500)
    end as detail
  from jobs j join instances i on i.id = j.instance_id
  cross join lateral (
    select bool_or(r.reason is null) as possible, count(*) as hosts,
           string_agg(h.name || ': ' || r.reason, '; ' order by h.name) as reasons
    from hosts h cross join lateral (
      select nullif(concat_ws(', ',
        case when i.cpu_millis > h.cpu_millis then 'cpu_millis ' || i.cpu_millis || ' of ' || h.cpu_millis end,
        case when i.memory_mib > h.memory_mib then 'memory_mib ' || i.memory_mib || ' of ' || h.memory_mib end,
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
    error = jsonb_build_object('code', $3::text, 'detail', stuck.detail)
  from stuck where j.id = stuck.job_id and j.status = 'queued' returning j.id, j.instance_id, j.error),
changed as (
  update instances i set status = t.becomes, status_reason = failed.error, updated_at = now(), finished_at = now()
  from failed, unnest($1::text[], $2::text[]) as t (was, becomes)
  where i.id = failed.instance_id and t.was = i.status
  returning i.tenant_id, i.id, failed.id as job_id, i.status, i.status_reason),
event as (
  insert into events (tenant_id, instance_id, job_id, kind, detail)
  select tenant_id, id, job_id, 'instance.' || status, status_reason from changed)
select 1 from failed
