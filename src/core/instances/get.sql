-- Reads one instance of a tenant, with its host. A deleted instance can be read for 24 hours.
--
-- $1 instance           uuid
-- $2 tenant             uuid
select i.id, i.name, i.tenant_id, i.image, i.command, i.env, i.cpu_millis, i.memory_mib, i.network_id, i.network_name,
  i.address, i.mac, i.ports, i.labels, i.restart_policy, i.placement, i.status, i.status_reason, i.generation,
  i.host_id, i.job_id, i.restart_count, i.exit_code, i.created_at, i.updated_at, i.started_at, i.finished_at,
  h.name as host_name, h.address as host_address
from instances i left join hosts h on h.id = i.host_id
where i.id = $1 and i.tenant_id = $2 and (i.deleted_at is null or i.deleted_at > now() - interval '24 hours')
