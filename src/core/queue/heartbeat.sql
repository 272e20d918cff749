-- Extends leases, writes the steps that changed, and returns each job whose lease was extended. Returns one row of
-- nulls if the host belongs to another worker.
-- $1 boot uuid
-- $2 host uuid
-- $3 jobs uuid[]
-- $4 lease_tokens int8[]
-- $5 lease_ids uuid[]
-- $6 steps jsonb[]
-- $7 lease_s float8
with worker as (update workers set last_seen = now() where boot_id = $1),
host as (update hosts set last_seen = now() where id = $2 and current_boot = $1 returning id),
mine as (
  select m.id, m.token, m.lease, m.steps
  from unnest($3::uuid[], $4::bigint[], $5::uuid[], $6::jsonb[]) as m (id, token, lease, steps)),
extended as (
  update jobs j set lease_until = now() + make_interval(secs => $7), steps = coalesce(mine.steps, j.steps)
  from mine join hosts h on h.id = $2 and h.current_boot = $1
  where j.id = mine.id and j.status = 'running' and j.lease_token = mine.token and j.lease_id = mine.lease
  returning j.id, j.cancel_requested_at is not null as cancel_requested)
select id, cancel_requested from extended
union all select null, null where not exists (select from host)
