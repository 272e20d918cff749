-- Puts a new key in the place of one of a known version, with its idempotency record, outbox row and event. The old key
-- is revoked, or with a grace expires within it. Returns no row when the old key is not of that version any more, is
-- revoked, expired or not the tenant's, or when the idempotency key was used within 24 hours. The tenant's row is
-- locked before the key's, which is the order of a suspension; the new key's foreign key would lock it after.
-- $1 old_id uuid
-- $2 owner uuid, the tenant that must own the key, null for any
-- $3 rotated_by uuid
-- $4 new_id uuid
-- $5 env smallint
-- $6 key_hash bytea
-- $7 pepper_v smallint
-- $8 hint text
-- $9 grace_s float8, 0 to revoke the old key
-- $10 idempotency_tenant uuid
-- $11 idempotency_key text, null for none
-- $12 idempotency_route text
-- $13 request_hash bytea
-- $14 salt text, what the new key was derived from
-- $15 old_version bigint
with tenant as materialized (
  select id
  from tenants
  where id = (select tenant_id from api_key where id = $1)
  for key share),
target as (
  select k.id, k.tenant_id, k.name, k.scopes, k.limits, k.not_before, k.expires_at
  from tenant
  join api_key k on k.tenant_id = tenant.id
  where k.id = $1 and ($2::uuid is null or k.tenant_id = $2) and k.ver = $15
    and k.revoked_at is null and (k.expires_at is null or k.expires_at > now())
  for update of k),
idem as (
  insert into idempotency (tenant_id, route, key, request_hash, answer)
  select $10, $12, $11, $13, jsonb_build_object('key_id', $4::uuid, 'salt', $14::text)
  from target
  where $11::text is not null
  on conflict (tenant_id, route, key) do update
    set request_hash = excluded.request_hash, answer = excluded.answer, created_at = now()
    where idempotency.created_at < now() - interval '24 hours'
  returning 1),
accepted as (
  select id, tenant_id, name, scopes, limits, not_before, expires_at
  from target
  where $11::text is null or exists (select from idem)),
old as (
  update api_key k
  set ver = k.ver + 1, changed_at = now(),
      revoked_at = case when $9::float8 > 0 then null else now() end,
      revoked_by = case when $9::float8 > 0 then null else $3::uuid end,
      expires_at = case when $9::float8 > 0 then least(k.expires_at, now() + make_interval(secs => $9::float8))
                        else k.expires_at end
  from accepted
  where k.id = accepted.id
  returning k.id, k.tenant_id, k.key_hash, k.ver),
new as (
  insert into api_key as k (id, tenant_id, name, env, key_hash, pepper_v, hint, scopes, limits, created_by,
                            not_before, expires_at, rotated_from)
  select $4, tenant_id, name, $5, $6, $7, $8, scopes, limits, $3, not_before, expires_at, id
  from accepted
  returning k.id, k.name, k.tenant_id, k.scopes, k.limits, k.hint, k.created_at, k.created_by, k.expires_at,
            k.revoked_at, k.ver),
outbox as (
  insert into cache_outbox (key_hash, ver, op)
  select key_hash, ver, case when $9::float8 > 0 then 2 else 1 end
  from old
  returning id),
event as (
  insert into events (tenant_id, kind, detail)
  select tenant_id, 'key.rotated', jsonb_build_object('key_id', id, 'by', $3::uuid, 'new_key_id', $4::uuid)
  from old)
select k.id, k.name, k.tenant_id, k.scopes, k.limits, k.hint, k.created_at, k.created_by, k.expires_at, k.revoked_at,
       k.ver as key_ver, null::timestamptz as last_used_at,
       outbox.id as outbox, old.key_hash, old.ver, $9::float8 <= 0 as refused
from new k, old, outbox
