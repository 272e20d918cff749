-- Changes at most 1000 instances whose host has not sent a heartbeat for the length of a lease: a running one becomes
-- unknown, and one whose status stays as it is gets the reason only. Returns a row for each.
-- $1 lease_s float8
-- $2 transition_from text[]
-- $3 transition_to text[]
-- $4 reason_code text
-- $5 restart_grace_s float8
with silent as materialized (
  select i.id, t.becomes from instances i join hosts h on h.id = i.host_id
  join unnest($2::text[], $3::text[]) as t (was, becomes) on t.was = i.status
  where i.status <> 'deleted' and h.last_seen < now() - make_interval(secs => $1)
    and (t.becomes <> t.was or i.status_reason is null)
    and pg_postmaster_start_time() < now() - make_interval(secs => $5)
  limit 1000 for update of i skip locked)
update instances i set status = silent.becomes, updated_at = now(),
  status_reason = jsonb_build_object('code', $4::text, 'detail', 'the host does not report')
from silent where i.id = silent.id returning 1
