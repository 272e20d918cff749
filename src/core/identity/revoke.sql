-- Revokes a key, with its outbox row and event. A key that is revoked already gets another outbox row, since the
-- process that revoked it may have ended before it delivered the change. Returns no row when there is no such key.
-- $1 id uuid
-- $2 owner uuid, the tenant that must own the key, null for any
-- $3 revoked_by uuid
with target as (
  select id, tenant_id, key_hash, ver, revoked_at
  from api_key
  where id = $1 and ($2::uuid is null or tenant_id = $2)
  for update),
revoked as (
  update api_key k
  set revoked_at = now(), revoked_by = $3, ver = k.ver + 1, changed_at = now()
  from target
  where k.id = target.id and k.revoked_at is null
  returning k.id, k.tenant_id, k.key_hash, k.ver),
change as (
  select tenant_id, key_hash, ver from revoked
  union all
  select tenant_id, key_hash, ver from target where revoked_at is not null),
outbox as (
  insert into cache_outbox (key_hash, ver, op)
  select key_hash, ver, 1
  from change
  returning id),
event as (
  insert into events (tenant_id, kind, detail)
  select tenant_id, 'key.revoked', jsonb_build_object('key_id', id, 'by', $3::uuid)
  from revoked)
select outbox.id as outbox, change.tenant_id, change.key_hash, change.ver, true as refused
from change, outbox
