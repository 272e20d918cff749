//! The backends there are, as closed enums: which one is chosen at start, the rest of the program does not care.
//!
//! Promises: each call goes to the chosen backend unchanged; clones share it.
//! Refuses: a trait object; the traits' futures have no common type.

use std::time::Duration;

use futures_util::stream::BoxStream;

use super::{
    Attachment, BackendError, Changed, Compute, Fabric, Guest, NetworkPlan, Observed, Progress, Released,
    docker::{DockerCompute, DockerFabric},
    simulated::{SimulatedCompute, SimulatedFabric},
};
use crate::core::id::{InstanceId, NetworkId};

#[derive(Clone)]
pub enum ComputeBackend {
    Docker(DockerCompute),
    Simulated(SimulatedCompute),
}

#[derive(Clone)]
pub enum FabricBackend {
    Docker(DockerFabric),
    Simulated(SimulatedFabric),
}

/// The same call on whichever it is.
macro_rules! chosen {
    ($self:ident.$($call:tt)+) => {
        match $self {
            Self::Docker(backend) => backend.$($call)+,
            Self::Simulated(backend) => backend.$($call)+,
        }
    };
}

impl ComputeBackend {
    /// The runtime's version; proves that it answers.
    pub async fn version(&self) -> Result<String, BackendError> {
        chosen!(self.version().await)
    }
}

impl Compute for ComputeBackend {
    async fn ensure_image(&self, image: &str, progress: Progress<'_>) -> Result<(), BackendError> {
        chosen!(self.ensure_image(image, progress).await)
    }

    async fn create(&self, guest: &Guest, attachment: &Attachment) -> Result<String, BackendError> {
        chosen!(self.create(guest, attachment).await)
    }

    async fn start(&self, instance: InstanceId) -> Result<(), BackendError> {
        chosen!(self.start(instance).await)
    }

    async fn stop(&self, instance: InstanceId, grace: Duration) -> Result<(), BackendError> {
        chosen!(self.stop(instance, grace).await)
    }

    async fn remove(&self, instance: InstanceId) -> Result<(), BackendError> {
        chosen!(self.remove(instance).await)
    }

    async fn inspect(&self, instance: InstanceId) -> Result<Option<Observed>, BackendError> {
        chosen!(self.inspect(instance).await)
    }

    async fn list(&self) -> Result<Vec<Observed>, BackendError> {
        chosen!(self.list().await)
    }

    fn changes(&self) -> BoxStream<'static, Result<Changed, BackendError>> {
        chosen!(self.changes())
    }
}

impl Fabric for FabricBackend {
    async fn ensure_network(&self, network: &NetworkPlan) -> Result<(), BackendError> {
        chosen!(self.ensure_network(network).await)
    }

    async fn rejoin(&self, instance: InstanceId, attachment: &Attachment) -> Result<(), BackendError> {
        chosen!(self.rejoin(instance, attachment).await)
    }

    async fn publish(&self, instance: InstanceId, attachment: &Attachment) -> Result<(), BackendError> {
        chosen!(self.publish(instance, attachment).await)
    }

    async fn unpublish(&self, instance: InstanceId) -> Result<(), BackendError> {
        chosen!(self.unpublish(instance).await)
    }

    async fn release_network(&self, network: NetworkId) -> Result<Released, BackendError> {
        chosen!(self.release_network(network).await)
    }

    async fn networks(&self) -> Result<Vec<NetworkId>, BackendError> {
        chosen!(self.networks().await)
    }
}
