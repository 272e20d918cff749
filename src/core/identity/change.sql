-- Changes a key of a known version, with its idempotency record, outbox row and event. Returns no row when the key is
-- not of that version any more, is revoked or is not the tenant's, or when the idempotency key was used within 24
-- hours. The key's row is locked first, so that of two requests with one idempotency key the second finds the record of
-- the first.
-- $1 id uuid
-- $2 owner uuid, the tenant that must own the key, null for any
-- $3 changed_by uuid
-- $4 name text, null to keep
-- $5 scopes text[], null to keep
-- $6 set_expires_at boolean
-- $7 expires_at timestamptz
-- $8 idempotency_tenant uuid
-- $9 idempotency_key text, null for none
-- $10 idempotency_route text
-- $11 request_hash bytea
-- $12 limits jsonb, null to keep
-- $13 version bigint
with target as (
  select id, tenant_id, name, scopes, expires_at, limits
  from api_key
  where id = $1 and ($2::uuid is null or tenant_id = $2) and ver = $13 and revoked_at is null
  for update),
idem as (
  insert into idempotency (tenant_id, route, key, request_hash, answer)
  select $8, $10, $9, $11, jsonb_build_object('key_id', id)
  from target
  where $9::text is not null
  on conflict (tenant_id, route, key) do update
    set request_hash = excluded.request_hash, answer = excluded.answer, created_at = now()
    where idempotency.created_at < now() - interval '24 hours'
  returning 1),
changed as (
  update api_key k
  set name = coalesce($4, k.name), scopes = coalesce($5, k.scopes), limits = coalesce($12, k.limits),
      expires_at = case when $6 then $7 else k.expires_at end, ver = k.ver + 1, changed_at = now()
  from target
  where k.id = target.id and ($9::text is null or exists (select from idem))
  returning k.id, k.tenant_id, k.key_hash, k.ver, k.name, k.scopes, k.expires_at, k.limits),
outbox as (
  insert into cache_outbox (key_hash, ver, op)
  select key_hash, ver, 2
  from changed
  returning id),
event as (
  insert into events (tenant_id, kind, detail)
  select tenant_id, 'key.changed', jsonb_build_object('key_id', id, 'by', $3::uuid,
    'name', k.name, 'scopes', k.scopes, 'expires_at', k.expires_at, 'limits', k.limits,
    'was', jsonb_build_object('name', target.name, 'scopes', target.scopes, 'expires_at', target.expires_at,
                              'limits', target.limits))
  from changed k
  join target using (id, tenant_id))
select outbox.id as outbox, changed.key_hash, changed.ver, false as refused
from changed, outbox
