-- The nouns and the queue. Postgres is the truth for all of them; see docs/architecture.md.

create table cluster (
    one        boolean primary key default true check (one),
    id         uuid not null default gen_random_uuid(),
    created_at timestamptz not null default now()
);
insert into cluster default values;

-- A statement that accepts a request has to refuse it from inside (and so undo all it did).
-- The code is what the API answers with; it travels as the error's message.
create function app_refuse(code text, detail text) returns boolean language plpgsql as $$
begin
    raise exception using errcode = 'AP001', message = code, detail = detail;
end $$;

create table tenants (
    id             uuid primary key,
    name           text not null unique,
    created_at     timestamptz not null default now(),
    suspended_at   timestamptz,
    max_instances  integer,
    max_cpu_millis bigint,
    max_memory_mib bigint
);

create table api_key (
    id            uuid primary key,
    tenant_id     uuid not null references tenants,
    name          text not null,
    env           smallint not null,
    key_hash      bytea not null unique check (octet_length(key_hash) = 32),
    pepper_v      smallint not null,
    hint          text not null,
    scopes        text[] not null,
    limits        jsonb not null default '{}',
    ver           bigint not null default 1,
    created_at    timestamptz not null default now(),
    created_by    uuid,
    not_before    timestamptz,
    expires_at    timestamptz,
    revoked_at    timestamptz,
    revoked_by    uuid,
    revoke_reason text,
    changed_at    timestamptz not null default now(),
    rotated_from  uuid references api_key
);
create index api_key_tenant on api_key (tenant_id, id) where revoked_at is null;
create index api_key_feed on api_key (changed_at);
-- In a table of its own: writing it into api_key would serialise all requests that share a key.
create table api_key_usage (
    key_id       uuid primary key references api_key on delete cascade,
    last_used_at timestamptz not null,
    n            bigint not null
) with (fillfactor = 70);
create table cache_outbox (
    id       bigint generated always as identity primary key,
    key_hash bytea not null,
    ver      bigint not null,
    op       smallint not null,                  -- 1: refused, 2: good in another way
    at       timestamptz not null default now(),
    done_at  timestamptz
);
create index cache_outbox_open on cache_outbox (id) where done_at is null;

create table networks (
    id         uuid primary key,
    tenant_id  uuid not null references tenants,
    name       text not null,
    cidr       cidr not null,
    created_at timestamptz not null default now(),
    unique (tenant_id, name)
);

create table hosts (
    id           uuid primary key,
    name         text not null unique,
    state        text not null default 'active'
                 check (state in ('active', 'draining', 'unreachable', 'fenced', 'retired')),
    epoch        bigint not null default 1,      -- bumped when fenced
    cpu_millis   bigint,                         -- null: no limit
    memory_mib   bigint,
    labels       jsonb not null default '{}',
    address      text,
    agent_url    text,
    current_boot uuid,
    last_seen    timestamptz not null default now(),
    created_at   timestamptz not null default now()
);
create table workers (
    boot_id    uuid primary key,
    host_id    uuid not null references hosts,
    machine_id text not null,
    pid        integer not null,
    version    text not null,
    slots      integer not null,
    state      text not null default 'active' check (state in ('active', 'draining', 'stopped')),
    started_at timestamptz not null default now(),
    last_seen  timestamptz not null default now(),
    stopped_at timestamptz
);

create table instances (
    id                  uuid primary key,
    tenant_id           uuid not null references tenants,
    name                text not null,
    image               text not null,
    command             jsonb,                   -- null: the image's own
    env                 jsonb not null default '{}',
    cpu_millis          integer not null check (cpu_millis > 0),
    memory_mib          integer not null check (memory_mib > 0),
    network_id          uuid not null,           -- what holds a network is its addresses; a deleted instance does not
    network_name        text not null,
    cidr                cidr not null,
    address             inet not null,
    mac                 text not null,
    ports               jsonb not null default '[]',
    labels              jsonb not null default '{}',
    restart_policy      text not null default 'no' check (restart_policy in ('no', 'on_failure', 'always')),
    placement           jsonb not null default '{}',
    desired             text not null default 'running' check (desired in ('running', 'stopped', 'deleted')),
    status              text not null default 'pending'
                        check (status in ('pending', 'provisioning', 'running', 'stopping', 'stopped', 'starting',
                                          'failed', 'unknown', 'deleting', 'deleted')),
    status_reason       jsonb,
    generation          bigint not null default 1,  -- +1 with each intent of the owner
    observed_generation bigint not null default 0,
    next_seq            bigint not null default 2,
    job_id              uuid not null,           -- the newest intent's job
    host_id             uuid references hosts,   -- null until placed, then pinned
    container_id        text,
    restart_count       integer not null default 0,
    restart_streak      integer not null default 0, -- restarts in a row that did not last
    exit_code           bigint,
    created_at          timestamptz not null default now(),
    updated_at          timestamptz not null default now(),
    started_at          timestamptz,
    finished_at         timestamptz,
    deleted_at          timestamptz,
    check ((status = 'deleted') = (deleted_at is not null))
) with (fillfactor = 80);
create unique index instances_name on instances (tenant_id, name) where status <> 'deleted';
create index instances_list on instances (tenant_id, id);
create index instances_host on instances (host_id) where status <> 'deleted';
create index instances_deleted on instances (deleted_at) where status = 'deleted';

-- Addresses and ports are freed when the host has confirmed that the container is gone.
create table addresses (
    network_id  uuid not null references networks,
    address     inet not null,
    mac         text not null,
    instance_id uuid not null unique,
    primary key (network_id, address),
    constraint addresses_mac unique (network_id, mac)
);
create table published_ports (
    protocol    text not null check (protocol in ('tcp', 'udp')),
    port        integer not null check (port between 1 and 65535),
    instance_id uuid not null,
    container   integer not null check (container between 1 and 65535),
    primary key (protocol, port)
);
create index published_ports_instance on published_ports (instance_id);

create table jobs (
    id                  uuid primary key,
    kind                text not null,           -- a worker leaves kinds that it does not know
    tenant_id           uuid not null references tenants,
    instance_id         uuid not null references instances on delete cascade,
    host_id             uuid,
    generation          bigint not null,
    seq                 bigint not null,         -- order within the instance: only the oldest unfinished one may run
    urgent              boolean not null generated always as (kind in ('delete', 'stop')) stored,
    status              text not null default 'queued'
                        check (status in ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'superseded')),
    run_at              timestamptz not null default now(),
    attempt             integer not null default 0 check (attempt >= 0),
    max_attempts        integer not null default 8,
    crashes             integer not null default 0,
    max_crashes         integer not null default 3,
    lease_token         bigint not null default 0,
    lease_id            uuid,
    lease_boot          uuid,
    lease_until         timestamptz,
    deadline_at         timestamptz,
    queue_deadline_at   timestamptz,
    cancel_requested_at timestamptz,
    steps               jsonb not null default '[]',
    error               jsonb,
    error_class         text,
    retry_of            uuid,
    created_at          timestamptz not null default now(),
    started_at          timestamptz,
    finished_at         timestamptz,
    trace_id            text,
    unique (instance_id, seq),
    check ((status = 'running') = (lease_id is not null)),
    check ((status in ('queued', 'running')) = (finished_at is null))
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
create unique index jobs_one_running on jobs (instance_id) where status = 'running';
create index jobs_queued_host on jobs (host_id, run_at) where status = 'queued';
create index jobs_queued_unplaced on jobs (run_at) where status = 'queued' and host_id is null;
create index jobs_queued_tenant on jobs (tenant_id, urgent desc, run_at) where status = 'queued';
create index jobs_lease on jobs (lease_until) where status = 'running';
create index jobs_list on jobs (tenant_id, id);
create index jobs_finished on jobs (finished_at) where finished_at is not null;

create table events (
    id          bigint generated always as identity primary key,
    at          timestamptz not null default now(),
    tenant_id   uuid not null,
    instance_id uuid,
    job_id      uuid,
    kind        text not null,
    detail      jsonb not null default '{}'
);
create index events_instance on events (instance_id, id);

create table idempotency (
    tenant_id    uuid not null,
    route        text not null,
    key          text not null,
    request_hash bytea not null,
    answer       jsonb not null,                 -- ids only: the replay shows their present state
    created_at   timestamptz not null default now(),
    primary key (tenant_id, route, key)
);
create index idempotency_age on idempotency (created_at);

create table queue_control (
    scope        text primary key,               -- 'all' or 'host:<id>'
    paused       boolean not null default false,
    max_inflight integer,
    reason       text
);

-- The tenant's row is locked only where a quota is set. In a function, since its statements see what other
-- transactions committed while it waited for the lock; the calling statement's own snapshot does not.
create function app_quota(tenant uuid, cpu bigint, memory bigint) returns boolean language plpgsql as $$
declare
    t tenants;
    n bigint; c bigint; m bigint;
begin
    select * into t from tenants where id = tenant
        and (max_instances is not null or max_cpu_millis is not null or max_memory_mib is not null) for update;
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
