-- Suspends or resumes a tenant: every key that is not revoked gets a new version and an outbox row, as a
-- change and not as a refusal, since a tombstone that is delivered after the tenant was resumed would outlast the
-- suspension. Returns no row when there is no such tenant, and one without a key when the tenant has none.
-- $1 name text
-- $2 suspends boolean, false to resume
with target as (
  update tenants
  set suspended_at = case when $2 then coalesce(suspended_at, now()) end
  where name = $1
  returning id),
changed as (
  update api_key k
  set ver = ver + 1, changed_at = now()
  from target
  where k.tenant_id = target.id and k.revoked_at is null
  returning k.key_hash, k.ver),
outbox as (
  insert into cache_outbox (key_hash, ver, op)
  select key_hash, ver, 2
  from changed
  returning id, key_hash, ver),
event as (
  insert into events (tenant_id, kind)
  select id, case when $2 then 'tenant.suspended' else 'tenant.resumed' end
  from target)
select outbox.id as outbox, outbox.key_hash, outbox.ver, false as refused
from target
left join outbox on true
