//! Accepting `POST /instances`: one statement, one transaction, one round trip.
//!
//! It writes the idempotency record, checks the quota where one is set, takes an address and ports, and inserts
//! instance, job and event; or it refuses, and nothing of it remains. Addresses and ports are chosen by probing from a
//! random start (the lowest free one would be everybody's choice); a collision with a concurrent request is
//! answered by another try, and when tries run out by one that looks at all of them under the network's lock.

use std::ops::RangeInclusive;

use thiserror::Error;

use crate::core::idempotency::{self, IdempotencyKey, NoReplay, Replay};
use crate::core::{
    db::{DbError, DualDb, WriteConn},
    id::{InstanceId, JobId, TenantId},
    instances::{
        InstanceSpec,
        store::{self, InstanceRecord, instance_columns},
    },
};

/// What became of the request.
#[derive(Debug)]
pub enum Accepted {
    New(Box<InstanceRecord>),
    Replayed(Replay),
}

#[derive(Debug, Error)]
pub enum AcceptError {
    #[error("the name is taken")]
    NameTaken,
    #[error("no such network")]
    UnknownNetwork,
    #[error("the network has no free address")]
    AddressExhausted,
    /// With the reason, in the statement's words: "tcp port 20080 is taken".
    #[error("{0}")]
    PortTaken(String),
    #[error("{0}")]
    QuotaExceeded(String),
    #[error("the Idempotency-Key was used for another request")]
    KeyReused,
    #[error("the first request with this Idempotency-Key is still in progress")]
    KeyInProgress,
    #[error(transparent)]
    Db(DbError),
}

/// A request to accept. Ids and randomness come from outside.
pub struct Create<'a> {
    pub tenant: TenantId,
    pub spec: &'a InstanceSpec,
    pub idempotency: Option<&'a IdempotencyKey>,
    pub port_range: RangeInclusive<u16>,
    /// How long the job may wait for a host with room, in seconds.
    pub queue_deadline_s: f64,
}

/// Probes per address or port in an ordinary try.
const PROBES: i32 = 3;
const ORDINARY_TRIES: usize = 3;
const THOROUGH_TRIES: usize = 5;

const SQL: &str = concat!(
    "
with idem as (
  insert into idempotency (tenant_id, route, key, request_hash, answer)
  select $1, $3, $2, $4, jsonb_build_object('instance_id', $5::uuid, 'job_id', $6::uuid) where $2::text is not null
  on conflict (tenant_id, route, key) do update
    set request_hash = excluded.request_hash, answer = excluded.answer, created_at = now()
    where idempotency.created_at < now() - interval '24 hours'
  returning 1),
go as materialized (
  select app_quota($1, $11::integer, $12::integer) where $2::text is null or exists (select from idem)),
net as materialized (
  select n.id, n.name, n.cidr from go left join lateral (
    select id, name, cidr from networks where tenant_id = $1 and (name = $13 or id::text = $13)
    order by id::text = $13 desc limit 1) n on true
  where case when n.id is null then app_refuse('network_unknown', '') else true end),
addr as (
  insert into addresses (network_id, address, mac, instance_id)
  select net.id, c.address, $14, $5 from net cross join lateral (
    select p.address from (select (2 ^ (32 - masklen(net.cidr)))::bigint - 3 as span) s
    cross join generate_series(0, least(coalesce($16::integer, s.span), s.span) - 1) as k
    cross join lateral (
      select host(net.cidr)::inet + (2 + (floor($15::float8 * s.span)::bigint + k) % s.span) as address) p
    where not exists (select from addresses a where a.network_id = net.id and a.address = p.address)
    order by k limit 1) c
  on conflict do nothing
  returning address),
want as materialized (
  select w.container, w.host, w.protocol, w.start, w.n from unnest($17::integer[], $18::integer[], $19::text[], $20::float8[]) with ordinality
    as w (container, host, protocol, start, n)),
fixed as (
  insert into published_ports (protocol, port, instance_id, container)
  select w.protocol, w.host, $5, w.container from net, want w where w.host <> 0 order by w.protocol, w.host
  on conflict do nothing
  returning protocol, port, container),
taken as materialized (
  select w.protocol || ' port ' || w.host || ' is taken' as detail from want w
  where w.host <> 0 and not exists (select from fixed f where f.protocol = w.protocol and f.port = w.host)
  order by w.n limit 1),
auto as (
  insert into published_ports (protocol, port, instance_id, container)
  select w.protocol, c.port, $5, w.container from net cross join want w cross join lateral (
    select p.port from (select $22::integer - $21::integer + 1 as span) s
    cross join generate_series(0, least(coalesce($16::integer, s.span), s.span) - 1) as k
    cross join lateral (select ($21::integer + (floor(w.start * s.span)::integer + k) % s.span)::integer as port) p
    where not exists (select from published_ports t where t.protocol = w.protocol and t.port = p.port)
      and not exists (select from want f where f.protocol = w.protocol and f.host = p.port)
    order by k limit 1) c
  where w.host = 0
  on conflict do nothing
  returning protocol, port, container),
ports as materialized (select protocol, port, container from fixed union all select protocol, port, container from auto),
ready as materialized (
  select net.id, net.name, net.cidr, (select address from addr) as address,
    (select coalesce(jsonb_agg(jsonb_build_object('container', p.container, 'host', p.port, 'protocol', p.protocol)
                               order by w.n), '[]') from ports p join want w using (container, protocol)) as ports
  from net
  where case when exists (select from taken) then app_refuse('port_taken', (select detail from taken))
             when not exists (select from addr) then app_refuse('address_retry', '')
             when (select count(*) from ports) < (select count(*) from want) then app_refuse('port_retry', '')
             else true end),
inst as (
  insert into instances as i (id, tenant_id, name, image, command, env, cpu_millis, memory_mib, network_id, network_name,
                              cidr, address, mac, ports, labels, restart_policy, placement, job_id)
  select $5, $1, $7, $8, $9, $10, $11, $12, r.id, r.name, r.cidr, r.address, $14, r.ports, $23, $24, $25, $6 from ready r
  returning ",
    instance_columns!(),
    "),
job as (
  insert into jobs (id, kind, tenant_id, instance_id, generation, seq, queue_deadline_at)
  select $6, 'provision', tenant_id, id, generation, 1, now() + make_interval(secs => $26) from inst
  returning id, instance_id, tenant_id),
event as (
  insert into events (tenant_id, instance_id, job_id, kind) select tenant_id, instance_id, id, 'instance.accepted' from job)
select ",
    instance_columns!(),
    ", null::text as host_name, null::text as host_address from inst i"
);

/// Accepts the request, or says why not; then nothing of it was stored.
///
/// # Errors
/// `AcceptError`; `Db(Unavailable)` means that the outcome is unknown.
pub async fn create(db: &DualDb, request: &Create<'_>) -> Result<Accepted, AcceptError> {
    for attempt in 0..ORDINARY_TRIES + THOROUGH_TRIES {
        let thorough = attempt >= ORDINARY_TRIES;
        let conn = db.write().await.map_err(AcceptError::Db)?;
        // Either way the connection is given back: a replay takes one, and must not wait for others that do the same.
        let result = if thorough { under_network_lock(conn, request).await } else { ordinary(conn, request).await };
        match result {
            Ok(Some(record)) => return Ok(Accepted::New(Box::new(record))),
            Ok(None) => return replay(db, request).await,
            Err(DbError::Refused { code, .. }) if code == "address_retry" && thorough => {
                return Err(AcceptError::AddressExhausted);
            }
            Err(DbError::Refused { code, .. }) if code == "address_retry" || code == "port_retry" => {}
            // Two requests that wait for each other's ports: one was undone, so it may run again.
            Err(DbError::StaleStatement { .. } | DbError::RolledBack { .. }) => {}
            Err(error) => return Err(translate(error, request)),
        }
    }
    Err(AcceptError::PortTaken("no host port is free".into()))
}

async fn ordinary(conn: WriteConn, request: &Create<'_>) -> Result<Option<InstanceRecord>, DbError> {
    once(&conn, request, Some(PROBES)).await
}

async fn once(conn: &WriteConn, request: &Create<'_>, probes: Option<i32>) -> Result<Option<InstanceRecord>, DbError> {
    let (instance, job) = (InstanceId::new(), JobId::new());
    let spec = request.spec;
    let name = spec.name.clone().unwrap_or_else(|| generated_name(instance));
    let key = request.idempotency;
    let json = |map| serde_json::to_value(map).unwrap_or_default();
    let ports = &spec.ports;
    let rows = conn
        .query(
            SQL,
            &[
                &request.tenant.uuid(),
                &key.map(|key| key.key.as_str()),
                &key.map_or("", |key| key.route.as_str()),
                &key.map_or(&[][..], |key| key.request_hash.as_slice()),
                &instance.uuid(),
                &job.uuid(),
                &name,
                &spec.image,
                &spec.command.as_ref().map(|command| serde_json::json!(command)),
                &json(&spec.env),
                &spec.cpu_millis,
                &spec.memory_mib,
                &spec.network,
                &mac(instance),
                &random_unit(),
                &probes,
                &ports.iter().map(|port| i32::from(port.container)).collect::<Vec<_>>(),
                &ports.iter().map(|port| i32::from(port.host)).collect::<Vec<_>>(),
                &ports.iter().map(|port| port.protocol.as_str()).collect::<Vec<_>>(),
                &ports.iter().map(|_| random_unit()).collect::<Vec<_>>(),
                &i32::from(*request.port_range.start()),
                &i32::from(*request.port_range.end()),
                &json(&spec.labels),
                &spec.restart_policy.as_str(),
                &serde_json::json!(spec.placement),
                &request.queue_deadline_s,
            ],
        )
        .await?;
    Ok(rows.first().map(store::record))
}

/// Looks at every address and port. The lock comes first, in a statement of its own: only the next one sees what
/// others committed while this one waited.
async fn under_network_lock(conn: WriteConn, request: &Create<'_>) -> Result<Option<InstanceRecord>, DbError> {
    conn.begin().await?;
    conn.query(
        "select 1 from networks where tenant_id = $1 and (name = $2 or id::text = $2) order by id for update",
        &[&request.tenant.uuid(), &request.spec.network],
    )
    .await?;
    let record = once(&conn, request, None).await?;
    conn.commit().await?;
    Ok(record)
}

async fn replay(db: &DualDb, request: &Create<'_>) -> Result<Accepted, AcceptError> {
    let Some(key) = request.idempotency else {
        let message = "accepted nothing and refused nothing".into();
        return Err(AcceptError::Db(DbError::Invariant(message)));
    };
    match idempotency::read(db, request.tenant, key).await.map_err(AcceptError::Db)? {
        Ok(replay) => Ok(Accepted::Replayed(replay)),
        Err(NoReplay::Reused) => Err(AcceptError::KeyReused),
        Err(NoReplay::InProgress) => Err(AcceptError::KeyInProgress),
    }
}

fn translate(error: DbError, request: &Create<'_>) -> AcceptError {
    match error {
        DbError::Refused { code, detail } => match code.as_str() {
            "network_unknown" => AcceptError::UnknownNetwork,
            "quota_exceeded" => AcceptError::QuotaExceeded(detail),
            "port_taken" => AcceptError::PortTaken(detail),
            _ => AcceptError::Db(DbError::Refused { code, detail }),
        },
        DbError::Conflict { constraint } if constraint == "instances_name" => AcceptError::NameTaken,
        DbError::Locked if request.idempotency.is_some() => AcceptError::KeyInProgress,
        other => AcceptError::Db(other),
    }
}

/// `i-` and the random tail of the id: unique without asking.
fn generated_name(instance: InstanceId) -> String {
    let tail = instance.uuid().simple().to_string();
    format!("i-{}", &tail[20..])
}

/// Locally administered, from the random tail of the id.
fn mac(instance: InstanceId) -> String {
    let bytes = instance.uuid().into_bytes();
    let tail: Vec<String> = bytes[11..].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("02:{}", tail.join(":"))
}

/// Uniform in 0..1.
fn random_unit() -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "53 bits are what an f64 holds")]
    let unit = (getrandom::u64().unwrap_or_default() >> 11) as f64 / (1u64 << 53) as f64;
    unit
}
