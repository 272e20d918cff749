-- Lists keys that are not revoked, newest first, with the size of the answer up to each of them (see `core::page`).
-- Without its name, which may consist of escapes, a key takes at most 640 bytes of JSON.
-- $1 owner uuid, null for all
-- $2 before_id uuid, null for the first page
-- $3 rows_max bigint
-- $4 bytes_max integer
select k.id, k.name, k.tenant_id, k.scopes, k.limits, k.hint, k.created_at, k.created_by, k.expires_at, k.revoked_at,
       k.key_ver, k.last_used_at, k.page_bytes
from (
  select k.id, k.name, k.tenant_id, k.scopes, k.limits, k.hint, k.created_at, k.created_by, k.expires_at, k.revoked_at,
         k.key_ver, k.last_used_at, k.bytes, sum(k.bytes) over (order by k.id desc) as page_bytes
  from (
    select k.id, k.name, k.tenant_id, k.scopes, k.limits, k.hint, k.created_at, k.created_by, k.expires_at,
           k.revoked_at, k.ver as key_ver, u.last_used_at, least(640 + octet_length(to_json(k.name)::text), $4) as bytes
    from api_key k
    left join api_key_usage u on u.key_id = k.id
    where ($1::uuid is null or k.tenant_id = $1) and k.revoked_at is null and ($2::uuid is null or k.id < $2)
    order by k.id desc
    limit $3) k) k
where k.page_bytes - k.bytes <= $4
order by k.id desc
