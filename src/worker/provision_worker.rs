//! `ProvisionWorker`: the state that the parts of one worker share. The header of `worker` shows what the parts do.

use tokio::sync::mpsc;

use super::{leases::Leases, timers::Timers};
use crate::{
    backend::any::{AnyCompute, AnyNetwork},
    config::worker::WorkerConfig,
    core::{db::DualDb, id::InstanceId, queue::claim::WorkerIdentity},
};

/// The worker of this host: one per process, shared by its tasks.
pub struct ProvisionWorker {
    /// The Postgres servers.
    pub(super) db: DualDb,
    /// The host, and this run of its worker; every claim presents it.
    pub(super) identity: WorkerIdentity,
    /// Slots, times and the host's capacity.
    pub(super) config: WorkerConfig,
    /// Runs the containers of this host.
    pub(super) compute: AnyCompute,
    /// Sets up the networks of this host.
    pub(super) network: AnyNetwork,
    /// The active jobs and their leases.
    pub(super) leases: Leases,
    /// Wakes the dispatcher when a job that this worker postponed becomes due.
    pub(super) timers: Timers,
    /// Instances whose container is to be compared with Postgres now. The receiver lives as long as the `reconcile`
    /// loop.
    pub(super) reconcile_requests: mpsc::UnboundedSender<InstanceId>,
}
