-- Reads what decides about a key. Returns a row also for a hash that no key has, so that `read_only` is known.
-- $1 key_hash bytea
select current_setting('transaction_read_only')::boolean as read_only,
       k.key_hash, k.ver, k.id, k.name, k.tenant_id, k.scopes, k.limits, k.expires_at,
       extract(epoch from now())::float8 as now_s,
       k.revoked_at is not null or t.suspended_at is not null or coalesce(k.expires_at <= now(), false) as refused,
       extract(epoch from k.not_before - now())::float8 as valid_in_s
from (select 1) one
left join (api_key k join tenants t on t.id = k.tenant_id) on k.key_hash = $1
