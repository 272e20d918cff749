-- `for no key update` keeps creates of one tenant apart as `for update` did, and lets what only refers to the tenant
-- (a new key or network, by its foreign key) go on meanwhile.
create or replace function app_quota(tenant uuid, cpu bigint, memory bigint) returns boolean language plpgsql as $$
declare
    t tenants;
    n bigint; c bigint; m bigint;
begin
    select * into t from tenants where id = tenant
        and (max_instances is not null or max_cpu_millis is not null or max_memory_mib is not null) for no key update;
    if not found then return true; end if;
    select count(*), coalesce(sum(cpu_millis), 0), coalesce(sum(memory_mib), 0) into n, c, m
        from instances where tenant_id = tenant and status <> 'deleted';
    if n + 1 > t.max_instances then
        return app_refuse('quota_exceeded', format('instances: %s of %s are in use', n, t.max_instances));
    end if;
    if c + cpu > t.max_cpu_millis then
        return app_refuse('quota_exceeded', format('cpu_millis: %s of %s are in use', c, t.max_cpu_millis));
    end if;
    if m + memory > t.max_memory_mib then
        return app_refuse('quota_exceeded', format('memory_mib: %s of %s are in use', m, t.max_memory_mib));
    end if;
    return true;
end $$;
