//! The backends there are, as closed enums: which one is chosen at start, the rest of the program does not care.
//!
//! Promises: each call goes to the chosen backend unchanged; clones share it.
//! Refuses: a trait object; the traits' futures have no common type.

use std::time::Duration;

use futures_util::stream::BoxStream;

use super::{
    BackendError, Changed, Compute, ContainerSpec, Network, NetworkAttachment, NetworkPlan, Observed, Progress,
    Released,
    docker::{DockerCompute, DockerNetwork},
    simulated::{SimulatedCompute, SimulatedNetwork},
};
use crate::core::id::{InstanceId, NetworkId};

#[derive(Clone)]
pub enum AnyCompute {
    Docker(DockerCompute),
    Simulated(SimulatedCompute),
}

#[derive(Clone)]
pub enum AnyNetwork {
    Docker(DockerNetwork),
    Simulated(SimulatedNetwork),
}

/// Awaits the same call on whichever it is. Its future is on the heap: bollard's are tens of kilobytes, and every future
/// that awaits one by value would hold a copy, which overflows a thread's stack in a debug build.
macro_rules! chosen {
    ($self:ident.$call:ident($($argument:expr),*)) => {
        match $self {
            Self::Docker(backend) => Box::pin(backend.$call($($argument),*)).await,
            Self::Simulated(backend) => Box::pin(backend.$call($($argument),*)).await,
        }
    };
}

impl AnyCompute {
    /// The runtime's version; proves that it answers.
    pub async fn version(&self) -> Result<String, BackendError> {
        chosen!(self.version())
    }
}

impl Compute for AnyCompute {
    async fn ensure_image(&self, image: &str, progress: Progress<'_>) -> Result<(), BackendError> {
        chosen!(self.ensure_image(image, progress))
    }

    async fn create(&self, spec: &ContainerSpec, attachment: &NetworkAttachment) -> Result<String, BackendError> {
        chosen!(self.create(spec, attachment))
    }

    async fn start(&self, instance: InstanceId) -> Result<(), BackendError> {
        chosen!(self.start(instance))
    }

    async fn stop(&self, instance: InstanceId, grace: Duration) -> Result<(), BackendError> {
        chosen!(self.stop(instance, grace))
    }

    async fn remove(&self, instance: InstanceId) -> Result<(), BackendError> {
        chosen!(self.remove(instance))
    }

    async fn discard(&self, container: &Observed) -> Result<(), BackendError> {
        chosen!(self.discard(container))
    }

    async fn inspect(&self, instance: InstanceId) -> Result<Option<Observed>, BackendError> {
        chosen!(self.inspect(instance))
    }

    async fn list(&self) -> Result<Vec<Observed>, BackendError> {
        chosen!(self.list())
    }

    fn changes(&self) -> BoxStream<'static, Result<Changed, BackendError>> {
        match self {
            Self::Docker(backend) => backend.changes(),
            Self::Simulated(backend) => backend.changes(),
        }
    }
}

impl Network for AnyNetwork {
    async fn ensure_network(&self, network: &NetworkPlan) -> Result<(), BackendError> {
        chosen!(self.ensure_network(network))
    }

    async fn rejoin(&self, instance: InstanceId, attachment: &NetworkAttachment) -> Result<(), BackendError> {
        chosen!(self.rejoin(instance, attachment))
    }

    async fn publish(&self, instance: InstanceId, attachment: &NetworkAttachment) -> Result<(), BackendError> {
        chosen!(self.publish(instance, attachment))
    }

    async fn unpublish(&self, instance: InstanceId) -> Result<(), BackendError> {
        chosen!(self.unpublish(instance))
    }

    async fn release_network(&self, network: NetworkId) -> Result<Released, BackendError> {
        chosen!(self.release_network(network))
    }

    async fn networks(&self) -> Result<Vec<NetworkId>, BackendError> {
        chosen!(self.networks())
    }
}
