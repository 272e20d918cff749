-- Reads Postgres' time, and the versions of the keys that changed within six minutes: longer than any cached value is
-- used. Always returns a row, so that `read_only` is known.
select current_setting('transaction_read_only')::boolean as read_only,
       extract(epoch from now())::float8 as now_s, k.short_hash, k.ver
from (select 1) one
left join lateral (
  select substr(key_hash, 1, 16) as short_hash, ver
  from api_key
  where changed_at > now() - interval '6 minutes') k on true
