-- Returns the jobs that a claim took whose answer was lost, with the columns of claim.sql.
-- $1 lease_id uuid
-- $2 boot uuid
select j.id, j.tenant_id, j.instance_id, j.kind, j.request_id, j.attempt, j.max_attempts, j.crashes, j.lease_token,
  extract(epoch from now() - j.run_at)::float8 as waited_s, extract(epoch from now() - j.created_at)::float8 as age_s,
  i.desired = 'deleted' as deletion_requested, i.generation, i.image, i.command, i.env, i.cpu_millis, i.memory_mib,
  i.network_id, i.cidr, i.address, i.mac, i.ports
from jobs j join instances i on i.id = j.instance_id
where j.lease_id = $1 and j.lease_boot = $2 and j.status = 'running'
