//! Accepting a request for an instance: one statement (`create.sql`), one transaction, one round trip.
//!
//! The statement writes the idempotency record, checks the quota where one is set, takes an address and host ports, and
//! inserts instance, job and event. If it refuses, nothing of it remains. Addresses and ports are probed from a random
//! start, since concurrent requests would all choose the lowest free one. When a probe collides with a concurrent request,
//! the statement runs again; after three such tries it runs under the network's lock and looks at every address and port.
//!
//! A request with an `Idempotency-Key` that was accepted before writes nothing: it returns the ids that were recorded.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use thiserror::Error;
use tokio_postgres::types::Json;

use super::{
    InstanceSpec, Refusal, RestartPolicy,
    spec::{Placement, Port, Protocol},
    store::{self, InstanceRecord},
};
use crate::core::{
    db::{DbError, DualDb, Param, WriteConn},
    id::{InstanceId, JobId, TenantId},
    idempotency::{self, IdempotencyKey, NoReplay, Replay},
    random::random_unit,
};

/// How a request for an instance was accepted.
#[derive(Debug)]
pub enum CreateOutcome {
    /// The instance and its job were committed now.
    New(Box<InstanceRecord>),
    /// The first request with the same idempotency key had been accepted.
    Replayed(Replay),
}

/// Why a request was not accepted.
#[derive(Debug, Error)]
pub enum AcceptError {
    /// Another instance of the tenant, which is not deleted, has the name.
    #[error("the name is taken")]
    NameTaken,
    /// The tenant has no network of this name or id.
    #[error("no such network")]
    UnknownNetwork,
    /// Every address of the network is in use.
    #[error("the network has no free address")]
    AddressExhausted,
    /// Another instance publishes this host port.
    #[error("{protocol} port {port} is taken")]
    PortTaken {
        /// The port's protocol.
        protocol: Protocol,
        /// The host port.
        port: u16,
    },
    /// No host port of the range is free.
    #[error("no host port is free")]
    NoFreePort,
    /// The instance would exceed the tenant's quota. With use and limit: "instances: 5 of 5 are in use".
    #[error("{0}")]
    QuotaExceeded(String),
    /// The idempotency key was used for another request.
    #[error("the Idempotency-Key was used for another request")]
    KeyReused,
    /// The first request with this idempotency key has not ended.
    #[error("the first request with this Idempotency-Key is still in progress")]
    KeyInProgress,
    /// The statement failed; after `DbError::Unavailable` the outcome is unknown.
    #[error(transparent)]
    Db(DbError),
}

/// A request for an instance, as the statement needs it.
pub struct Create<'a> {
    /// The tenant that owns the instance.
    pub tenant: TenantId,
    /// The instance to create.
    pub spec: &'a InstanceSpec,
    /// The request's idempotency key, if it has one.
    pub idempotency: Option<&'a IdempotencyKey>,
    /// The host ports that a `host: 0` may be given.
    pub port_range: RangeInclusive<u16>,
    /// How long the job may wait for a host with room.
    pub queue_deadline: Duration,
    /// The id of the HTTP request, for the worker's log lines.
    pub request_id: Option<&'a str>,
}

/// Addresses or ports that an ordinary try probes, each.
const PROBES_MAX: i32 = 3;
const ORDINARY_TRIES_MAX: usize = 3;
const THOROUGH_TRIES_MAX: usize = 5;

const CREATE: &str = include_str!("create.sql");

/// The parameters of `create.sql`, in its order.
struct CreateParams<'a> {
    tenant: TenantId,
    idempotency_key: Option<&'a str>,
    route: &'a str,
    request_hash: &'a [u8],
    instance: InstanceId,
    job: JobId,
    name: String,
    image: &'a str,
    command: Option<Json<&'a Vec<String>>>,
    env: Json<&'a BTreeMap<String, String>>,
    cpu_millis: i32,
    memory_mib: i32,
    network: &'a str,
    mac: String,
    first_address: f64,
    probes: Option<i32>,
    container_ports: Vec<i32>,
    host_ports: Vec<i32>,
    protocols: Vec<Protocol>,
    first_ports: Vec<f64>,
    range_first: i32,
    range_last: i32,
    labels: Json<&'a BTreeMap<String, String>>,
    restart_policy: RestartPolicy,
    placement: Json<&'a Placement>,
    queue_deadline_s: f64,
    request_id: Option<&'a str>,
}

impl<'a> CreateParams<'a> {
    /// Makes the parameters of one try, with new ids. `probes`: `None` looks at every address and port.
    fn new(request: &Create<'a>, probes: Option<i32>) -> Self {
        let (instance, spec) = (InstanceId::new(), request.spec);
        let (idempotency_key, route, request_hash) = idempotency::columns(request.idempotency);
        let ports = |number: fn(&Port) -> u16| spec.ports.iter().map(|port| i32::from(number(port))).collect();
        Self {
            tenant: request.tenant,
            idempotency_key,
            route,
            request_hash,
            instance,
            job: JobId::new(),
            name: spec.name.clone().unwrap_or_else(|| generated_name(instance)),
            image: &spec.image,
            command: spec.command.as_ref().map(Json),
            env: Json(&spec.env),
            cpu_millis: spec.cpu_millis,
            memory_mib: spec.memory_mib,
            network: &spec.network,
            mac: mac(instance),
            first_address: random_unit(),
            probes,
            container_ports: ports(|port| port.container),
            host_ports: ports(|port| port.host),
            protocols: spec.ports.iter().map(|port| port.protocol).collect(),
            first_ports: spec.ports.iter().map(|_| random_unit()).collect(),
            range_first: i32::from(*request.port_range.start()),
            range_last: i32::from(*request.port_range.end()),
            labels: Json(&spec.labels),
            restart_policy: spec.restart_policy,
            placement: Json(&spec.placement),
            queue_deadline_s: request.queue_deadline.as_secs_f64(),
            request_id: request.request_id,
        }
    }

    fn list(&self) -> [Param<'_>; 27] {
        [
            &self.tenant,
            &self.idempotency_key,
            &self.route,
            &self.request_hash,
            &self.instance,
            &self.job,
            &self.name,
            &self.image,
            &self.command,
            &self.env,
            &self.cpu_millis,
            &self.memory_mib,
            &self.network,
            &self.mac,
            &self.first_address,
            &self.probes,
            &self.container_ports,
            &self.host_ports,
            &self.protocols,
            &self.first_ports,
            &self.range_first,
            &self.range_last,
            &self.labels,
            &self.restart_policy,
            &self.placement,
            &self.queue_deadline_s,
            &self.request_id,
        ]
    }
}

/// Accepts the request: commits instance, job and idempotency record together.
///
/// # Errors
/// The refusals of `AcceptError`, after which nothing was stored; `Db(Unavailable)` when the outcome is unknown.
pub async fn create(db: &DualDb, request: &Create<'_>) -> Result<CreateOutcome, AcceptError> {
    let mut last = AcceptError::NoFreePort;
    for attempt in 0..ORDINARY_TRIES_MAX + THOROUGH_TRIES_MAX {
        let thorough = attempt >= ORDINARY_TRIES_MAX;
        let conn = db.write().await.map_err(AcceptError::Db)?;
        // Both take the connection and return it to the pool, since a replay takes another one: replays that each hold a
        // connection while they wait for the next would use up the pool.
        let result = if thorough { create_locked(conn, request).await } else { create_once(conn, request).await };
        let error = match result {
            Ok(Some(record)) => return Ok(CreateOutcome::New(Box::new(record))),
            Ok(None) => return replay(db, request).await,
            Err(error) => error,
        };
        last = match (&error, refusal(&error)) {
            (_, Some(Refusal::AddressRetry)) if thorough => return Err(AcceptError::AddressExhausted),
            (_, Some(Refusal::AddressRetry)) => AcceptError::AddressExhausted,
            (_, Some(Refusal::PortRetry)) => AcceptError::NoFreePort,
            // Two requests that wait for each other's ports: Postgres rolled one of them back, so it may run again.
            (DbError::StaleStatement { .. } | DbError::RolledBack { .. }, _) => AcceptError::Db(error),
            _ => return Err(accept_error(error, request.idempotency.is_some())),
        };
    }
    Err(last)
}

fn refusal(error: &DbError) -> Option<Refusal> {
    match error {
        DbError::Refused { code, .. } => Refusal::from_code(code),
        _ => None,
    }
}

async fn run(conn: &WriteConn, request: &Create<'_>, probes: Option<i32>) -> Result<Option<InstanceRecord>, DbError> {
    let rows = conn.query(CREATE, &CreateParams::new(request, probes).list()).await?;
    rows.first().map(store::record).transpose()
}

async fn create_once(conn: WriteConn, request: &Create<'_>) -> Result<Option<InstanceRecord>, DbError> {
    run(&conn, request, Some(PROBES_MAX)).await
}

/// Looks at every address and port, under the network's lock. The lock is taken by a statement of its own, because only the
/// next statement sees what others committed while this one waited.
async fn create_locked(conn: WriteConn, request: &Create<'_>) -> Result<Option<InstanceRecord>, DbError> {
    conn.begin().await?;
    conn.query(
        "select 1 from networks where tenant_id = $1 and (name = $2 or id::text = $2) order by id for update",
        &[&request.tenant, &request.spec.network],
    )
    .await?;
    let record = run(&conn, request, None).await?;
    conn.commit().await?;
    Ok(record)
}

async fn replay(db: &DualDb, request: &Create<'_>) -> Result<CreateOutcome, AcceptError> {
    let Some(key) = request.idempotency else {
        let message = "create.sql returned no row without an idempotency key".into();
        return Err(AcceptError::Db(DbError::Invariant(message)));
    };
    let replay = idempotency::read(db, request.tenant, key).await.map_err(AcceptError::Db)?;
    replay.map(CreateOutcome::Replayed).map_err(AcceptError::from)
}

impl From<NoReplay> for AcceptError {
    fn from(no_replay: NoReplay) -> Self {
        match no_replay {
            NoReplay::Reused => Self::KeyReused,
            NoReplay::InProgress => Self::KeyInProgress,
        }
    }
}

/// Translates the error of a statement that is not run again. `has_key`: the request has an idempotency key, whose row is
/// the first one that the statement locks.
fn accept_error(error: DbError, has_key: bool) -> AcceptError {
    match (error, has_key) {
        (DbError::Refused { code, detail }, _) => match Refusal::from_code(&code) {
            Some(Refusal::NetworkUnknown) => AcceptError::UnknownNetwork,
            Some(Refusal::QuotaExceeded) => AcceptError::QuotaExceeded(detail),
            Some(Refusal::PortTaken) => port_taken(&detail),
            Some(Refusal::AddressRetry | Refusal::PortRetry | Refusal::DeleteRetry) | None => {
                AcceptError::Db(DbError::Refused { code, detail })
            }
        },
        (DbError::Conflict { constraint }, _) if constraint == "instances_name" => AcceptError::NameTaken,
        (DbError::Locked, true) => AcceptError::KeyInProgress,
        (other, _) => AcceptError::Db(other),
    }
}

/// Reads the detail of `port_taken` ("tcp 20080"). Any other text is a bug, and is not shown to the client.
fn port_taken(detail: &str) -> AcceptError {
    let port = detail.split_once(' ').and_then(|(protocol, port)| Some((protocol.parse().ok()?, port.parse().ok()?)));
    match port {
        Some((protocol, port)) => AcceptError::PortTaken { protocol, port },
        None => AcceptError::Db(DbError::Invariant(format!("port_taken with the detail {detail:?}"))),
    }
}

/// Returns `i-` and the random tail of the id: unique without a look at the other names.
fn generated_name(instance: InstanceId) -> String {
    let tail = instance.uuid().simple().to_string();
    format!("i-{}", &tail[20..])
}

/// Returns a locally administered address made of the random tail of the id.
fn mac(instance: InstanceId) -> String {
    let bytes = instance.uuid().into_bytes();
    let tail: Vec<String> = bytes[11..].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("02:{}", tail.join(":"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: &str, detail: &str) -> AcceptError {
        accept_error(DbError::Refused { code: code.into(), detail: detail.into() }, false)
    }

    #[test]
    fn taken_port_is_named_in_our_own_words() {
        assert_eq!(refused("port_taken", "tcp 20080").to_string(), "tcp port 20080 is taken");
    }

    #[test]
    fn other_text_about_a_taken_port_is_an_internal_error() {
        for detail in ["Key (protocol, port)=(tcp, 20080) already exists.", "tcp", "tcp 70000", "icmp 1", ""] {
            let error = refused("port_taken", detail);

            assert!(matches!(error, AcceptError::Db(DbError::Invariant(_))), "{detail}: {error}");
        }
    }

    #[test]
    fn refusal_with_unknown_code_is_an_internal_error() {
        assert!(matches!(refused("eaten", "by mice"), AcceptError::Db(DbError::Refused { .. })));
    }

    #[test]
    fn locked_row_means_in_progress_only_with_a_key() {
        assert!(matches!(accept_error(DbError::Locked, true), AcceptError::KeyInProgress));
        assert!(matches!(accept_error(DbError::Locked, false), AcceptError::Db(DbError::Locked)));
    }
}
