-- Creates a key, with its idempotency record and its event. Returns no row when there is no such tenant, or when the
-- idempotency key was used within 24 hours.
-- $1 id uuid
-- $2 owner uuid
-- $3 name text
-- $4 env smallint
-- $5 key_hash bytea
-- $6 pepper_v smallint
-- $7 hint text
-- $8 scopes text[]
-- $9 created_by uuid, null from a shell
-- $10 idempotency_tenant uuid
-- $11 idempotency_key text, null for none
-- $12 idempotency_route text
-- $13 request_hash bytea
-- $14 salt text, what the key was derived from
-- $15 expires_at timestamptz
-- $16 not_before timestamptz
-- $17 limits jsonb
with idem as (
  insert into idempotency (tenant_id, route, key, request_hash, answer)
  select $10, $12, $11, $13, jsonb_build_object('key_id', $1::uuid, 'salt', $14::text)
  from tenants t
  where t.id = $2 and $11::text is not null
  on conflict (tenant_id, route, key) do update
    set request_hash = excluded.request_hash, answer = excluded.answer, created_at = now()
    where idempotency.created_at < now() - interval '24 hours'
  returning 1),
new as (
  insert into api_key as k (id, tenant_id, name, env, key_hash, pepper_v, hint, scopes, created_by, expires_at,
                            not_before, limits)
  select $1, t.id, $3, $4, $5, $6, $7, $8, $9, $15, $16, $17
  from tenants t
  where t.id = $2 and ($11::text is null or exists (select from idem))
  returning k.id, k.name, k.tenant_id, k.scopes, k.limits, k.hint, k.created_at, k.created_by, k.expires_at,
            k.revoked_at, k.ver),
event as (
  insert into events (tenant_id, kind, detail)
  select tenant_id, 'key.created', jsonb_build_object('key_id', id, 'by', created_by)
  from new)
select k.id, k.name, k.tenant_id, k.scopes, k.limits, k.hint, k.created_at, k.created_by, k.expires_at, k.revoked_at,
       k.ver as key_ver, null::timestamptz as last_used_at
from new k
