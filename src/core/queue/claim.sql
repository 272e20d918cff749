-- Claims at most $5 queued jobs for one worker, places their instances on its host, and returns what the worker needs.
-- Returns one row per claimed job, or a single row without a job. `more`: jobs that this host could run may be left.
-- $1 host uuid
-- $2 boot uuid
-- $3 epoch int8
-- $4 known_kinds text[]
-- $5 free_slots int8
-- $6 lease_id uuid
-- $7 lease_s float8
-- $8 deadline_s float8
-- $9 transition_kind text[]
-- $10 transition_from text[]
-- $11 transition_to text[]
with recursive me as materialized (
  select h.id, h.name, h.state, h.labels, h.cpu_millis, h.memory_mib from hosts h
  where h.id = $1 and h.current_boot = $2 and h.epoch = $3 and h.state in ('active', 'draining')
    and not exists (select from queue_control q where q.paused and q.scope in ('all', 'host:' || h.id::text))),
load as materialized (
  select coalesce(sum(i.cpu_millis), 0) as cpu, coalesce(sum(i.memory_mib), 0) as memory
  from instances i where i.host_id = $1 and i.status <> 'deleted'),
busy as (
  select tenant_id, count(*) as running from jobs where lease_boot = $2 and status = 'running' group by tenant_id),
-- A loose index scan: the tenants that have queued jobs, without a scan of the whole backlog.
tenant (id) as (
  (select tenant_id from jobs where status = 'queued' order by tenant_id limit 1)
  union all
  select (select j.tenant_id from jobs j where j.status = 'queued' and j.tenant_id > t.id order by j.tenant_id limit 1)
  from tenant t where t.id is not null),
-- Per tenant: how many jobs are considered, and how many are read at most to find them. The more tenants have queued
-- jobs, the fewer of each. Jobs that cannot run now (too large, for another host) are skipped, but only up to
-- `scan_limit`, so that neither they nor a long backlog make this statement slow.
share as materialized (
  select greatest(1, 2 * $5::bigint / n) as take_limit, greatest(100, 10000 / n) as scan_limit
  from (select greatest(1, count(id)) as n from tenant) t),
-- Of urgent jobs (deletes) as many as there are slots, since they go first.
eligible as materialized (
  select e.id, e.instance_id, e.tenant_id, e.urgent, e.run_at, e.unplaced, e.cpu, e.memory
  from tenant t cross join share
  cross join lateral (values (true, $5::bigint), (false, share.take_limit)) as class (urgent, take_limit)
  cross join lateral (
    select j.id, j.instance_id, j.tenant_id, j.urgent, j.run_at, i.host_id is null as unplaced,
      case when i.host_id is null then i.cpu_millis else 0 end as cpu,
      case when i.host_id is null then i.memory_mib else 0 end as memory
    from (select id, instance_id, tenant_id, urgent, run_at, seq, kind from jobs
          where status = 'queued' and tenant_id = t.id and urgent = class.urgent and run_at <= now()
            and (host_id is null or host_id = $1)
          order by run_at limit share.scan_limit) j
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
    order by j.run_at limit class.take_limit) e),
-- The n-th job of each tenant has turn n, counted from what the tenant has running on this host.
turns as (
  select e.id, e.instance_id, e.urgent, e.run_at, e.unplaced, e.cpu, e.memory,
    coalesce(b.running, 0)
      + row_number() over (partition by e.tenant_id order by e.urgent desc, e.run_at, e.id) as turn,
    count(*) over (partition by e.tenant_id) as of_tenant
  from eligible e left join busy b using (tenant_id)),
summed as (
  select t.id, t.instance_id, t.urgent, t.run_at, t.unplaced, t.turn, sum(cpu) over w as cpu_sum,
    sum(memory) over w as memory_sum
  from turns t window w as (order by urgent desc, turn, run_at, id rows unbounded preceding)),
-- Twice as many as there are slots, so that a host that claims at the same time leaves some.
chosen as materialized (
  select s.id, s.instance_id, s.urgent, s.turn, s.run_at from summed s cross join me cross join load
  where not s.unplaced
     or (me.cpu_millis is null or load.cpu + s.cpu_sum <= me.cpu_millis)
        and (me.memory_mib is null or load.memory + s.memory_sum <= me.memory_mib)
  order by s.urgent desc, s.turn, s.run_at, s.id limit 2 * $5::bigint),
-- Rows that another transaction has locked are skipped: once the lock is free, another host may have claimed the job,
-- and a transaction that waits for a lock while it holds many is half of a deadlock.
locked as materialized (
  select j.id from chosen c join jobs j on j.id = c.id join instances i on i.id = c.instance_id
  where j.status = 'queued' and j.run_at <= now() and (i.host_id is null or i.host_id = $1)
  order by c.urgent desc, c.turn, c.run_at, c.id limit $5 for update of i, j skip locked),
claimed as (
  update jobs j set status = 'running', attempt = j.attempt + 1, host_id = $1,
    lease_token = j.lease_token + 1, lease_id = $6, lease_boot = $2, lease_until = now() + make_interval(secs => $7),
    deadline_at = now() + make_interval(secs => $8), started_at = coalesce(j.started_at, now())
  from locked l where j.id = l.id
  returning j.id, j.tenant_id, j.instance_id, j.kind, j.request_id, j.attempt, j.max_attempts, j.crashes, j.lease_token,
    j.run_at, j.created_at),
placed as (
  update instances i set host_id = $1, updated_at = now(),
    status = coalesce((select t.becomes from unnest($9::text[], $10::text[], $11::text[]) as t (kind, was, becomes)
                       where t.kind = c.kind and t.was = i.status), i.status)
  from claimed c where i.id = c.instance_id
  returning i.id, i.desired, i.generation, i.image, i.command, i.env, i.cpu_millis, i.memory_mib, i.network_id, i.cidr,
    i.address, i.mac, i.ports),
-- Either something that was considered is left, or a tenant may have more jobs than were considered.
left_over as (
  select count(*) > (select count(*) from claimed) or max(of_tenant) >= (select take_limit from share) as more
  from turns)
select j.id, j.tenant_id, j.instance_id, j.kind, j.request_id, j.attempt, j.max_attempts, j.crashes, j.lease_token,
  extract(epoch from now() - j.run_at)::float8 as waited_s, extract(epoch from now() - j.created_at)::float8 as age_s,
  i.desired = 'deleted' as deletion_requested, i.generation, i.image, i.command, i.env, i.cpu_millis, i.memory_mib,
  i.network_id, i.cidr, i.address, i.mac, i.ports, coalesce(left_over.more, false) as more
from left_over left join (claimed j join placed i on i.id = j.instance_id) on true
