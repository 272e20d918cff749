//! The backends run containers and attach them to networks, behind the traits `Compute` and `Network`.
//!
//! A worker holds one pair of them: Docker, or the simulated one for tests. They depend on ids and specs only, not on
//! jobs, leases or Postgres. What they create is named after our id and labelled with the cluster's id, so that nothing
//! of another cluster is ever adopted, stopped or removed.
//!
//! Under failure: every operation is idempotent, so the caller may repeat it after a crash or a lost answer, and every
//! operation that creates something has one that undoes it.

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

/// The container that an instance should have.
#[derive(Clone)]
pub struct ContainerSpec {
    /// The instance.
    pub instance: InstanceId,
    /// The generation of the instance's spec; it grows with each request of the owner.
    pub generation: i64,
    /// The attempt that creates it, recorded in its labels.
    pub made_by: Attempt,
    /// The host of the worker that creates it, recorded in its labels: an engine can have workers under several host
    /// names.
    pub host: HostId,
    /// The image reference.
    pub image: String,
    /// The command and its arguments; `None`: the image's own.
    pub command: Option<Vec<String>>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Thousandths of a core.
    pub cpu_millis: i32,
    /// MiB; swap is limited to the same.
    pub memory_mib: i32,
}

// Without `env`, which may hold the tenant's secrets.
impl fmt::Debug for ContainerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContainerSpec")
            .field("instance", &self.instance)
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

/// One attempt of a job; no other attempt has the same job and token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The job.
    pub job: JobId,
    /// The job's fencing token, which grows with each attempt.
    pub token: i64,
}

/// A tenant's network, as a host sets it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPlan {
    /// The network.
    pub id: NetworkId,
    /// Its addresses.
    pub cidr: Ipv4Cidr,
}

impl NetworkPlan {
    /// Returns the first usable address, which is reserved for the gateway.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.cidr.first_address()) + 1)
    }
}

/// The result of `Network::release_network`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Released {
    /// The network does not exist on this host any more.
    Gone,
    /// A container still uses it.
    InUse,
    /// No container uses it, but the runtime does not remove it, for this reason. With the same CIDR it can be used
    /// again.
    Stuck(String),
}

/// The transport protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TransportProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl TransportProtocol {
    /// Returns `tcp` or `udp`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A published port: `host`, on every address of the host, leads to `container`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    /// The port in the container.
    pub container: u16,
    /// The port on the host.
    pub host: u16,
    /// The protocol of both.
    pub protocol: TransportProtocol,
}

/// How a container is attached to its network.
#[derive(Clone, Debug)]
pub struct NetworkAttachment {
    /// The network.
    pub network: NetworkPlan,
    /// The container's address in it.
    pub address: Ipv4Addr,
    /// The container's MAC address: `02:…`, lower case.
    pub mac: String,
    /// The ports to publish.
    pub ports: Vec<PortPlan>,
}

/// A container that exists on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// The instance that it belongs to.
    pub instance: InstanceId,
    /// The generation of the spec that it was created from.
    pub generation: i64,
    /// The attempt that created it; `None`: a release that did not write this label.
    pub made_by: Option<Attempt>,
    /// The host of the worker that created it; `None`: a release that did not write this label.
    pub host: Option<HostId>,
    /// The runtime's id.
    pub container_id: String,
    /// The state of its process.
    pub state: ContainerState,
    /// When it was created.
    pub created_at: time::OffsetDateTime,
}

/// The state of a container's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// It has never run.
    Created,
    /// It runs.
    Running,
    /// It has ended by itself, was killed, or ran out of memory.
    Exited {
        /// Its exit code.
        exit_code: i64,
        /// Whether any process of the container was killed for memory, not necessarily the one with this exit code.
        oom_killed: bool,
    },
}

impl Container {
    /// Returns whether it belongs to this host. A container without a host label does.
    pub fn belongs_to(&self, host: HostId) -> bool {
        self.host.is_none_or(|made_on| made_on == host)
    }
}

/// The container of this instance has changed. The change itself is not included: events can be late, so the receiver
/// inspects the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContainerChange {
    /// The instance.
    pub instance: InstanceId,
}

/// Called with one line of progress for people, at most a few times a second.
pub type Progress<'a> = &'a (dyn Fn(CleanText) + Send + Sync);

/// Runs containers.
///
/// An instance's container is recognised by its labels, so that one that was renamed is found. Should several
/// containers carry the same instance, operations act on the one with the instance's name, else on the newest; `stop`
/// and `remove` act on all of them. Any operation fails with `Unavailable` when the runtime does not answer.
pub trait Compute: Send + Sync {
    /// Makes the image available on this host, and pulls it if necessary. There is no undo, since images are shared.
    ///
    /// # Errors
    /// `ImageNotFound` or `ImagePullFailed`.
    fn ensure_image(
        &self,
        image: &str,
        progress: Progress<'_>,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Creates the container, without starting it, and returns the runtime's id. A container of this cluster that is
    /// equal is adopted as it is, running or not (`Container::made_by` shows it). One of another generation or spec is
    /// replaced; its anonymous volumes stay on the host.
    ///
    /// # Errors
    /// `NameConflict` when a container of another cluster has the name; `ImageNotFound`, `NetworkSetup` or `Refused`
    /// when the runtime cannot create it.
    fn create(
        &self,
        spec: &ContainerSpec,
        attachment: &NetworkAttachment,
    ) -> impl Future<Output = Result<String, BackendError>> + Send;

    /// Starts the container; one that runs already is a success.
    ///
    /// # Errors
    /// `StartFailed`, `PortConflict` or `NetworkSetup` when it cannot run; `Unavailable` also when it does not exist.
    fn start(&self, instance: InstanceId) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Sends its process SIGTERM and kills it after `grace`. One that has ended or does not exist is a success.
    fn stop(&self, instance: InstanceId, grace: Duration) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Kills and removes the container with everything it holds, anonymous volumes included; one that does not exist is
    /// a success. Only for a delete, a purge or an orphan.
    fn remove(&self, instance: InstanceId) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Kills and removes this one container, and no other of its instance; one that does not exist is a success. Its
    /// anonymous volumes are removed only if it never ran: they hold nothing then but what the image had.
    fn discard(&self, container: &Container) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Returns the container of this instance, if it exists.
    fn inspect(&self, instance: InstanceId) -> impl Future<Output = Result<Option<Container>, BackendError>> + Send;

    /// Returns all containers of this cluster on this host, one for each instance.
    fn list(&self) -> impl Future<Output = Result<Vec<Container>, BackendError>> + Send;

    /// Returns the changes from now on. The stream ends with an error when the runtime goes away: subscribe again, then
    /// compare everything by `list`.
    fn changes(&self) -> BoxStream<'static, Result<ContainerChange, BackendError>>;
}

/// Attaches containers to networks. Any operation fails with `Unavailable` when the runtime does not answer.
pub trait Network: Send + Sync {
    /// Creates the network on this host, if it does not exist.
    ///
    /// # Errors
    /// `NetworkSetup` when its name or its addresses are taken.
    fn ensure_network(&self, network: &NetworkPlan) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Prepares a stopped container to join the network at its next start, although the network may have been removed
    /// and created again since its last one. A container that runs or does not exist is a success.
    fn rejoin(
        &self,
        instance: InstanceId,
        attachment: &NetworkAttachment,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Makes the running instance reachable as planned. It is called after `start`, and before the instance is shown as
    /// `running`.
    ///
    /// # Errors
    /// `NetworkSetup` when a port does not lead to the container.
    fn publish(
        &self,
        instance: InstanceId,
        attachment: &NetworkAttachment,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Undoes `publish`; an instance that is not published is a success.
    fn unpublish(&self, instance: InstanceId) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Undoes `ensure_network`: removes the network from this host unless a container uses it. All values of `Released`
    /// are successes; an empty network that is left does no harm. A network of another cluster with this name stays,
    /// and counts as gone.
    fn release_network(&self, network: NetworkId) -> impl Future<Output = Result<Released, BackendError>> + Send;

    /// Returns the networks of this cluster on this host.
    fn networks(&self) -> impl Future<Output = Result<Vec<NetworkId>, BackendError>> + Send;
}
