-- Creates a tenant with its network `default`, unless a tenant has the name. Returns the tenant and whether it was
-- created. The update changes nothing: it locks and returns the row that is there, whichever transaction wrote it.
-- $1 id uuid, of a new tenant
-- $2 name text
-- $3 network_id uuid
-- $4 network_range cidr
with new as (
  insert into tenants (id, name) values ($1, $2)
  on conflict (name) do update set name = excluded.name
  returning id, xmax = 0 as created),
network as (
  insert into networks (id, tenant_id, name, cidr)
  select $3, id, 'default', $4
  from new
  where created)
select id, created
from new
