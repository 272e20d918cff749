//! What runs containers and joins them to networks, behind two traits.
//!
//! `Compute` owns containers, `Network` owns networks. Both know only ids and specs: nothing of jobs,
//! leases or Postgres. Each operation is idempotent and named by our id, so that it can be repeated
//! after a crash; each has an undo. Everything created carries the cluster's id, and nothing of
//! another cluster is ever touched.

pub mod any;
pub mod docker;
mod error;
pub mod simulated;

use std::{collections::BTreeMap, fmt, net::Ipv4Addr, time::Duration};

use cidr::Ipv4Cidr;
use futures_util::stream::BoxStream;

use crate::core::{
    id::{HostId, InstanceId, JobId, NetworkId},
    text::CleanText,
};

pub use error::BackendError;

/// A container to be: all that a compute backend needs.
#[derive(Clone)]
pub struct ContainerSpec {
    pub instance: InstanceId,
    /// The instance's generation: +1 with each intent of its owner.
    pub generation: i64,
    /// The attempt that asks, for the labels.
    pub made_by: Attempt,
    /// The host of the worker that asks, for the labels: an engine can have workers under several host names.
    pub host: HostId,
    pub image: String,
    /// `None`: the image's own.
    pub command: Option<Vec<String>>,
    pub env: BTreeMap<String, String>,
    /// Thousandths of a core.
    pub cpu_millis: i32,
    /// Mebibytes; swap is limited to the same.
    pub memory_mib: i32,
}

// `env` may hold the tenant's secrets.
impl fmt::Debug for ContainerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContainerSpec")
            .field("instance", &self.instance)
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

/// One attempt of a job: no two have both in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub job: JobId,
    /// The job's fencing token, which grows with each attempt.
    pub token: i64,
}

/// A network as a host realises it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPlan {
    pub id: NetworkId,
    pub cidr: Ipv4Cidr,
}

/// What became of a network that was released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Released {
    /// It is not on this host, or no more.
    Gone,
    /// Something still uses it.
    Used,
    /// Nothing uses it, and the runtime keeps it, for this reason. With the same CIDR it can serve again.
    Stuck(String),
}

impl NetworkPlan {
    /// The first usable address: reserved for the gateway.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.cidr.first_address()) + 1)
    }
}

/// One published port: `host` on every address of the host leads to `container`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    pub container: u16,
    pub host: u16,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
}

/// How one instance is joined to its network.
#[derive(Clone, Debug)]
pub struct NetworkAttachment {
    pub network: NetworkPlan,
    pub address: Ipv4Addr,
    /// `02:…`, lower case.
    pub mac: String,
    pub ports: Vec<PortPlan>,
}

/// A container as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub instance: InstanceId,
    pub generation: i64,
    /// The attempt that created it, and that attempt's host. `None`: created by a release without these labels.
    pub made_by: Option<Attempt>,
    pub host: Option<HostId>,
    /// The runtime's own id of it.
    pub container_id: String,
    pub state: ContainerState,
    /// When it was created, RFC 3339; orphans get a grace period from here.
    pub created_at: time::OffsetDateTime,
}

/// What the container's process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Created, never started.
    Created,
    Running,
    /// Ended by itself, was killed or ran out of memory.
    Exited {
        exit_code: i64,
        /// Any process in it was killed for memory, not necessarily the one whose exit code this is.
        oom_killed: bool,
    },
}

impl Observed {
    /// Returns whether it belongs to this host; one that names no host does.
    pub fn is_of(&self, host: HostId) -> bool {
        self.host.is_none_or(|made_on| made_on == host)
    }
}

/// Something happened to a container of ours; look at it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    pub instance: InstanceId,
}

/// Called with one human-readable line of progress, at most a few times a second.
pub type Progress<'a> = &'a (dyn Fn(CleanText) + Send + Sync);

/// Runs containers. An instance's container is known by what it carries, so that one which was renamed is found. Should
/// several carry the same instance, the one with the right name is meant, else the newest; `stop` and `remove` mean all.
pub trait Compute: Send + Sync {
    /// Makes sure that the image is here, pulling it if need be. No undo: images are shared.
    fn ensure_image(
        &self,
        image: &str,
        progress: Progress<'_>,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Makes sure that a container of this generation exists, created but not necessarily started, and answers the
    /// runtime's id of it. One of ours that is equal is adopted as it is (`Observed::made_by` tells); one of another
    /// generation or spec is replaced, and its anonymous volumes stay on the host.
    fn create(
        &self,
        spec: &ContainerSpec,
        attachment: &NetworkAttachment,
    ) -> impl Future<Output = Result<String, BackendError>> + Send;

    /// Starts it; running already is success.
    fn start(&self, instance: InstanceId) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Asks its process to end, kills it after `grace`; stopped or absent already is success.
    fn stop(&self, instance: InstanceId, grace: Duration) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Kills and removes it with all that it holds, its anonymous volumes included; absent is success. Only for a delete,
    /// a purge, or an orphan.
    fn remove(&self, instance: InstanceId) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Kills and removes this one container, and no other of its instance; absent is success. Its anonymous volumes go with it
    /// only if it never ran, so that they hold nothing but what the image had.
    fn discard(&self, container: &Observed) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// The container of this instance, if there is one.
    fn inspect(&self, instance: InstanceId) -> impl Future<Output = Result<Option<Observed>, BackendError>> + Send;

    /// All containers of this cluster on this host.
    fn list(&self) -> impl Future<Output = Result<Vec<Observed>, BackendError>> + Send;

    /// Changes from now on. Ends with an error when the runtime goes away: subscribe again, then re-check by `list`.
    fn changes(&self) -> BoxStream<'static, Result<Changed, BackendError>>;
}

/// Joins containers to networks.
pub trait Network: Send + Sync {
    /// Makes sure that the network exists on this host.
    fn ensure_network(&self, network: &NetworkPlan) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Makes sure that a container which does not run joins the network at its next start, though the network may have
    /// been made anew since; absent or running is success.
    fn rejoin(
        &self,
        instance: InstanceId,
        attachment: &NetworkAttachment,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Makes sure that the running instance is reachable as planned: called after `start`, before `running` shows.
    fn publish(
        &self,
        instance: InstanceId,
        attachment: &NetworkAttachment,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Undoes `publish`; not published is success.
    fn unpublish(&self, instance: InstanceId) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Undoes `ensure_network`: removes the network from this host unless something still uses it. Absent or in use is
    /// success, and so is `Stuck`: an empty network holds nothing up. One with its name that is not ours stays, and does
    /// not count.
    fn release_network(&self, network: NetworkId) -> impl Future<Output = Result<Released, BackendError>> + Send;

    /// The networks of this cluster on this host.
    fn networks(&self) -> impl Future<Output = Result<Vec<NetworkId>, BackendError>> + Send;
}
