//! Claiming jobs and placing their instances: one statement (`claim.sql`) for a whole batch.
//!
//! A host can claim a job when the job is due, no older job of its instance is unfinished, and the instance is either
//! placed on this host, or has no host yet and fits here. Urgent jobs (deletes) come first. Each further slot goes to
//! the tenant that has the fewest jobs running on this host, so that a tenant with a long backlog does not delay the
//! others.
//!
//! The caller must not run two claims of one host at the same time: the statement adds up what is committed on the host
//! and adds to it, but does not lock the sum, and two claims at once could place more than fits.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use cidr::{IpCidr, Ipv4Cidr};
use tokio_postgres::types::Json;

use crate::core::{
    db::{DbError, DualDb, Row, column, decode_or_skip, seconds},
    id::{BootId, HostId, InstanceId, JobId, LeaseId, NetworkId, TenantId},
    instances::{Transition, spec::Port},
    queue::job::JobKind,
};

const CLAIM: &str = include_str!("claim.sql");
const RECOVER: &str = include_str!("recover.sql");

/// The worker that claims: one run of the worker process of one host.
#[derive(Clone, Copy, Debug)]
pub struct WorkerIdentity {
    /// The host.
    pub host: HostId,
    /// This run of the worker; a claim of an earlier run finds nothing.
    pub boot: BootId,
    /// The host's epoch, which grows when the host is fenced; a claim with an older one finds nothing.
    pub epoch: i64,
    /// How many jobs it runs at a time.
    pub slots: usize,
}

/// The proof of one claim, which every later statement about the job presents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The claimed job.
    pub job: JobId,
    /// The instance it works on.
    pub instance: InstanceId,
    /// The fencing token: grows with each claim of the job.
    pub token: i64,
    /// Random per claim, so that a token that a restored database issues again is no proof.
    pub id: LeaseId,
}

/// A job that this worker holds until its lease ends, with everything that the work needs.
#[derive(Clone)]
pub struct Claimed {
    /// The proof of the claim.
    pub lease: Lease,
    /// The tenant that owns the instance.
    pub tenant: TenantId,
    /// The work to do.
    pub kind: JobKind,
    /// The id of the HTTP request that made the job; `None`: the worker made it (a restart).
    pub request_id: Option<String>,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// After this many attempts a failure is final.
    pub max_attempts: u32,
    /// How often a worker crashed while it held the job.
    pub crashes: u32,
    /// The owner has deleted the instance: a job of another kind has nothing to do.
    pub deletion_requested: bool,
    /// The generation of the instance's spec; it grows with each request of the owner.
    pub generation: i64,
    /// The image reference.
    pub image: String,
    /// The command and its arguments; `None`: the image's own.
    pub command: Option<Vec<String>>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Thousandths of a core.
    pub cpu_millis: i32,
    /// MiB.
    pub memory_mib: i32,
    /// The instance's network.
    pub network: NetworkId,
    /// The network's addresses.
    pub cidr: Ipv4Cidr,
    /// The instance's address in the network.
    pub address: Ipv4Addr,
    /// The instance's MAC address in the network.
    pub mac: String,
    /// Ports to publish on the host.
    pub ports: Vec<Port>,
    /// How long the job had been due when it was claimed.
    pub waited: Duration,
    /// How long ago the job had been accepted when it was claimed.
    pub age: Duration,
}

// Without `env`, which may hold the tenant's secrets.
impl std::fmt::Debug for Claimed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claimed").field("lease", &self.lease).finish_non_exhaustive()
    }
}

/// The parameters of a claim.
#[derive(Clone, Copy, Debug)]
pub struct ClaimRequest {
    /// The worker that claims.
    pub worker: WorkerIdentity,
    /// At most this many jobs.
    pub free_slots: usize,
    /// The id of the leases; `recover` finds the jobs by it.
    pub lease: LeaseId,
    /// The length of a lease without a heartbeat.
    pub lease_ttl: Duration,
    /// How long an attempt may take.
    pub job_deadline: Duration,
}

/// The result of one claim.
pub struct Batch {
    /// The claimed jobs.
    pub jobs: Vec<Claimed>,
    /// Whether jobs that this host could run may be left: claim again as soon as there is a free slot.
    pub more: bool,
}

/// Claims jobs in the order that the module's header states. Kinds that this release does not know stay queued.
///
/// # Errors
/// `Unavailable`: the outcome is unknown, and `recover` finds what was claimed. `ReadOnly`, `Locked`, `RolledBack`:
/// nothing was claimed. `Statement` or `Invariant` for a bug.
pub async fn claim(db: &DualDb, request: &ClaimRequest) -> Result<Batch, DbError> {
    let (kinds, from, to) = Transition::table_by_kind(Transition::Claimed);
    let rows = db
        .write()
        .await?
        .query(
            CLAIM,
            &[
                &request.worker.host,
                &request.worker.boot,
                &request.worker.epoch,
                &JobKind::ALL,
                &i64::try_from(request.free_slots).unwrap_or(i64::MAX),
                &request.lease,
                &request.lease_ttl.as_secs_f64(),
                &request.job_deadline.as_secs_f64(),
                &kinds,
                &from,
                &to,
            ],
        )
        .await?;
    // The statement returns at least one row: one without a job where none was claimed.
    let more = rows.first().map(|row| column(row, "more")).transpose()?.unwrap_or(false);
    Ok(Batch { jobs: decode_jobs(&rows, request.lease), more })
}

/// Returns the jobs that a claim took whose answer was lost.
///
/// # Errors
/// `Unavailable`, `ReadOnly`, `Locked` or `RolledBack`: the statement may be repeated; `Statement` for a bug.
pub async fn recover(db: &DualDb, worker: WorkerIdentity, lease: LeaseId) -> Result<Vec<Claimed>, DbError> {
    let rows = db.write().await?.query(RECOVER, &[&lease, &worker.boot]).await?;
    Ok(decode_jobs(&rows, lease))
}

/// Decodes each row. A row that this release cannot read is logged with its job's id and left out: its lease expires,
/// and after `max_crashes` such claims the job fails. The other jobs of the batch run.
fn decode_jobs(rows: &[Row], lease: LeaseId) -> Vec<Claimed> {
    let decode = |row: &Row| {
        let job = column::<Option<JobId>>(row, "id").transpose()?;
        decode_or_skip(row, "job", |row| decode_job(row, job?, lease))
    };
    rows.iter().filter_map(decode).collect()
}

fn decode_job(row: &Row, job: JobId, lease: LeaseId) -> Result<Claimed, DbError> {
    let (IpAddr::V4(address), IpCidr::V4(cidr)) = (column(row, "address")?, column(row, "cidr")?) else {
        return Err(DbError::Invariant("columns address, cidr: not IPv4".into()));
    };
    Ok(Claimed {
        lease: Lease { job, instance: column(row, "instance_id")?, token: column(row, "lease_token")?, id: lease },
        tenant: column(row, "tenant_id")?,
        kind: column(row, "kind")?,
        request_id: column(row, "request_id")?,
        attempt: count(row, "attempt")?,
        max_attempts: count(row, "max_attempts")?,
        crashes: count(row, "crashes")?,
        deletion_requested: column(row, "deletion_requested")?,
        generation: column(row, "generation")?,
        image: column(row, "image")?,
        command: column::<Option<Json<_>>>(row, "command")?.map(|Json(command)| command),
        env: column::<Json<_>>(row, "env")?.0,
        cpu_millis: column(row, "cpu_millis")?,
        memory_mib: column(row, "memory_mib")?,
        network: column(row, "network_id")?,
        cidr,
        address,
        mac: column(row, "mac")?,
        ports: column::<Json<_>>(row, "ports")?.0,
        waited: seconds(row, "waited_s")?,
        age: seconds(row, "age_s")?,
    })
}

fn count(row: &Row, name: &str) -> Result<u32, DbError> {
    let number: i32 = column(row, name)?;
    u32::try_from(number).map_err(|_| DbError::Invariant(format!("column {name}: {number} is negative")))
}
