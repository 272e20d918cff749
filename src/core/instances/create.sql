-- Accepts a request for an instance: writes the idempotency record, checks the quota, takes an address and ports, and
-- inserts the instance, its job and its event. Returns the instance; no row when the idempotency record exists already.
-- A refusal (app_refuse) is an error and undoes the whole statement.
--
-- Addresses and ports are probed from a random start. A collision with a concurrent request is refused with
-- address_retry or port_retry; the caller then runs the statement again.
--
-- $1  tenant             uuid
-- $2  idempotency key    text, null: none was sent
-- $3  route              text, of the idempotency record
-- $4  request hash       bytea, of the idempotency record
-- $5  instance           uuid, new
-- $6  job                uuid, new
-- $7  name               text
-- $8  image              text
-- $9  command            jsonb, null: the image's own
-- $10 env                jsonb
-- $11 cpu_millis         integer
-- $12 memory_mib         integer
-- $13 network            text, its name or id
-- $14 mac                text
-- $15 first address      float8, 0 to 1: where in the network the search begins
-- $16 probes             integer, how many addresses and ports are tried; null: all
-- $17 container ports    integer[]
-- $18 host ports         integer[], 0: any free one
-- $19 protocols          text[]
-- $20 first ports        float8[], 0 to 1: where in the range each search begins
-- $21 first of range     integer
-- $22 last of range      integer
-- $23 labels             jsonb
-- $24 restart policy     text
-- $25 placement          jsonb
-- $26 queue deadline     float8, seconds that the job may wait for a host
-- $27 request id         text, null: no HTTP request
with idem as (
  insert into idempotency (tenant_id, route, key, request_hash, answer)
  select $1, $3, $2, $4, jsonb_build_object('instance_id', $5::uuid, 'job_id', $6::uuid) where $2::text is not null
  on conflict (tenant_id, route, key) do update
    set request_hash = excluded.request_hash, answer = excluded.answer, created_at = now()
    where idempotency.created_at < now() - interval '24 hours'
  returning 1),
go as materialized (
  select app_quota($1, $11::integer, $12::integer) where $2::text is null or exists (select from idem)),
net as materialized (
  select n.id, n.name, n.cidr from go left join lateral (
    select id, name, cidr from networks where tenant_id = $1 and (name = $13 or id::text = $13)
    order by id::text = $13 desc limit 1) n on true
  where case when n.id is null then app_refuse('network_unknown', '') else true end),
addr as (
  insert into addresses (network_id, address, mac, instance_id)
  select net.id, c.address, $14, $5 from net cross join lateral (
    select p.address from (select (2 ^ (32 - masklen(net.cidr)))::bigint - 3 as span) s
    cross join generate_series(0, least(coalesce($16::integer, s.span), s.span) - 1) as k
    cross join lateral (
      select host(net.cidr)::inet + (2 + (floor($15::float8 * s.span)::bigint + k) % s.span) as address) p
    where not exists (select from addresses a where a.network_id = net.id and a.address = p.address)
    order by k limit 1) c
  on conflict do nothing
  returning address),
want as materialized (
  select w.container, w.host, w.protocol, w.start, w.n
  from unnest($17::integer[], $18::integer[], $19::text[], $20::float8[]) with ordinality
    as w (container, host, protocol, start, n)),
fixed as (
  insert into published_ports (protocol, port, instance_id, container)
  select w.protocol, w.host, $5, w.container from net, want w where w.host <> 0 order by w.protocol, w.host
  on conflict do nothing
  returning protocol, port, container),
-- Data for the caller, which words the refusal.
taken as materialized (
  select w.protocol || ' ' || w.host as port from want w
  where w.host <> 0 and not exists (select from fixed f where f.protocol = w.protocol and f.port = w.host)
  order by w.n limit 1),
auto as (
  insert into published_ports (protocol, port, instance_id, container)
  select w.protocol, c.port, $5, w.container from net cross join want w cross join lateral (
    select p.port from (select $22::integer - $21::integer + 1 as span) s
    cross join generate_series(0, least(coalesce($16::integer, s.span), s.span) - 1) as k
    cross join lateral (select ($21::integer + (floor(w.start * s.span)::integer + k) % s.span)::integer as port) p
    where not exists (select from published_ports t where t.protocol = w.protocol and t.port = p.port)
      and not exists (select from want f where f.protocol = w.protocol and f.host = p.port)
    order by k limit 1) c
  where w.host = 0
  on conflict do nothing
  returning protocol, port, container),
ports as materialized (
  select protocol, port, container from fixed union all select protocol, port, container from auto),
ready as materialized (
  select net.id, net.name, net.cidr, (select address from addr) as address,
    (select coalesce(jsonb_agg(jsonb_build_object('container', p.container, 'host', p.port, 'protocol', p.protocol)
                               order by w.n), '[]') from ports p join want w using (container, protocol)) as ports
  from net
  where case when exists (select from taken) then app_refuse('port_taken', (select port from taken))
             when not exists (select from addr) then app_refuse('address_retry', '')
             when (select count(*) from ports) < (select count(*) from want) then app_refuse('port_retry', '')
             else true end),
inst as (
  insert into instances as i (id, tenant_id, name, image, command, env, cpu_millis, memory_mib, network_id,
                              network_name, cidr, address, mac, ports, labels, restart_policy, placement, job_id)
  select $5, $1, $7, $8, $9, $10, $11, $12, r.id, r.name, r.cidr, r.address, $14, r.ports, $23, $24, $25, $6
  from ready r
  returning i.id, i.name, i.tenant_id, i.image, i.command, i.env, i.cpu_millis, i.memory_mib, i.network_id,
    i.network_name, i.address, i.mac, i.ports, i.labels, i.restart_policy, i.placement, i.status, i.status_reason,
    i.generation, i.host_id, i.job_id, i.restart_count, i.exit_code, i.created_at, i.updated_at, i.started_at,
    i.finished_at),
job as (
  insert into jobs (id, kind, tenant_id, instance_id, generation, seq, queue_deadline_at, request_id)
  select $6, 'provision', tenant_id, id, generation, 1, now() + make_interval(secs => $26), $27 from inst
  returning id, instance_id, tenant_id),
event as (
  insert into events (tenant_id, instance_id, job_id, kind)
  select tenant_id, instance_id, id, 'instance.accepted' from job)
select i.id, i.name, i.tenant_id, i.image, i.command, i.env, i.cpu_millis, i.memory_mib, i.network_id, i.network_name,
  i.address, i.mac, i.ports, i.labels, i.restart_policy, i.placement, i.status, i.status_reason, i.generation,
  i.host_id, i.job_id, i.restart_count, i.exit_code, i.created_at, i.updated_at, i.started_at, i.finished_at,
  null::text as host_name, null::text as host_address
from inst i
