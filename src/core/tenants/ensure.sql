-- Creates a tenant with its network `default`, unless a tenant has the name. Returns the tenant and whether it was
-- created. The update changes nothing: it locks and returns the row that is there, whichever transaction wrote it.
-- $1 id of a new tenant uuid
-- $2 name text
-- $3 id of its network uuid
-- $4 range of its network cidr
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
