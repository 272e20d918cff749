-- Lists the instances of a tenant that have a status, newest first; deleted ones within their 24 hours.
--
-- Each statement is written so that one cached plan fits every caller: an optional condition on an indexed column
-- ("$3 is null or …") would make Postgres plan again for each call, or scan the instances of all tenants. So a list
-- by status is another statement than the list of all that are not deleted.
--
-- From the inside out: the page without regard to its size (the fixed part of an item has at most 1.5 KiB); the size of
-- the answer up to the end of each row (page_bytes); the rows up to and including the first one that does not fit. An
-- item larger than a page counts as a whole page, so that the item after it is returned too: it shows that there is a
-- next page.
--
-- $1 tenant             uuid
-- $2 before             uuid, ids of this page are smaller
-- $3 name               text, null: any
-- $4 labels             jsonb[], objects that the labels contain
-- $5 network            text, its name or id; null: any
-- $6 host               text, its name or id; null: any
-- $7 rows               bigint, at most
-- $8 page bytes         integer, at most
-- $9 status             text
select i.id, i.name, i.tenant_id, i.image, i.command, i.env, i.cpu_millis, i.memory_mib, i.network_id, i.network_name,
  i.address, i.mac, i.ports, i.labels, i.restart_policy, i.placement, i.status, i.status_reason, i.generation,
  i.host_id, i.job_id, i.restart_count, i.exit_code, i.created_at, i.updated_at, i.started_at, i.finished_at,
  i.host_name, i.host_address, i.page_bytes
from (
  select i.id, i.name, i.tenant_id, i.image, i.command, i.env, i.cpu_millis, i.memory_mib, i.network_id, i.network_name,
    i.address, i.mac, i.ports, i.labels, i.restart_policy, i.placement, i.status, i.status_reason, i.generation,
    i.host_id, i.job_id, i.restart_count, i.exit_code, i.created_at, i.updated_at, i.started_at, i.finished_at,
    i.host_name, i.host_address, i.bytes, sum(i.bytes) over (order by i.id desc) as page_bytes
  from (
    select i.id, i.name, i.tenant_id, i.image, i.command, i.env, i.cpu_millis, i.memory_mib, i.network_id,
      i.network_name, i.address, i.mac, i.ports, i.labels, i.restart_policy, i.placement, i.status, i.status_reason,
      i.generation, i.host_id, i.job_id, i.restart_count, i.exit_code, i.created_at, i.updated_at, i.started_at,
      i.finished_at, h.name as host_name, h.address as host_address,
      least(1536 + octet_length(i.image) + coalesce(octet_length(i.command::text), 0) + octet_length(i.env::text)
        + octet_length(i.ports::text) + octet_length(i.labels::text) + octet_length(i.placement::text)
        + coalesce(octet_length(i.status_reason::text), 0), $8) as bytes
    from instances i left join hosts h on h.id = i.host_id
    where i.tenant_id = $1 and i.id < $2 and i.status = $9
      and (i.deleted_at is null or i.deleted_at > now() - interval '24 hours')
      and ($3::text is null or i.name = $3) and i.labels @> all($4)
      and ($5::text is null or i.network_name = $5 or i.network_id::text = $5)
      and ($6::text is null or h.name = $6 or h.id::text = $6)
    order by i.id desc limit $7) i) i
where i.page_bytes - i.bytes <= $8 order by i.id desc
