//! The backends as closed enums: configuration chooses one at startup, and the rest of the program does not depend on
//! the choice.
//!
//! Each call is passed to the chosen backend unchanged; clones share it. They are enums and not trait objects, because
//! the futures that the traits return have no common type.

use std::time::Duration;

use futures_util::stream::BoxStream;

use super::{
    BackendError, Compute, Container, ContainerChange, ContainerSpec, Network, NetworkAttachment, NetworkPlan,
    Progress, Released,
    docker::{DockerCompute, DockerNetwork},
    simulated::{SimulatedCompute, SimulatedNetwork},
};
use crate::core::id::{InstanceId, NetworkId};

/// The compute backend that configuration chose.
#[derive(Clone)]
pub enum AnyCompute {
    /// A Docker engine.
    Docker(DockerCompute),
    /// Files of the state directory.
    Simulated(SimulatedCompute),
}

/// The network backend that configuration chose.
#[derive(Clone)]
pub enum AnyNetwork {
    /// The bridge networks of a Docker engine.
    Docker(DockerNetwork),
    /// Files of the state directory.
    Simulated(SimulatedNetwork),
}

/// Awaits a call on the chosen backend. The call's future is on the heap: bollard's futures are tens of kilobytes, and
/// every future that awaits one by value would hold a copy, which overflows a thread's stack in a debug build.
macro_rules! delegate {
    ($self:ident.$call:ident($($argument:expr),*)) => {
        match $self {
            Self::Docker(backend) => Box::pin(backend.$call($($argument),*)).await,
            Self::Simulated(backend) => Box::pin(backend.$call($($argument),*)).await,
        }
    };
}

impl AnyCompute {
    /// Returns the runtime's version.
    ///
    /// # Errors
    /// `Unavailable` when the runtime does not answer.
    pub async fn version(&self) -> Result<String, BackendError> {
        delegate!(self.version())
    }
}

impl Compute for AnyCompute {
    async fn ensure_image(&self, image: &str, progress: Progress<'_>) -> Result<(), BackendError> {
        delegate!(self.ensure_image(image, progress))
    }

    async fn create(&self, spec: &ContainerSpec, attachment: &NetworkAttachment) -> Result<String, BackendError> {
        delegate!(self.create(spec, attachment))
    }

    async fn start(&self, instance: InstanceId) -> Result<(), BackendError> {
        delegate!(self.start(instance))
    }

    async fn stop(&self, instance: InstanceId, grace: Duration) -> Result<(), BackendError> {
        delegate!(self.stop(instance, grace))
    }

    async fn remove(&self, instance: InstanceId) -> Result<(), BackendError> {
        delegate!(self.remove(instance))
    }

    async fn discard(&self, container: &Container) -> Result<(), BackendError> {
        delegate!(self.discard(container))
    }

    async fn inspect(&self, instance: InstanceId) -> Result<Option<Container>, BackendError> {
        delegate!(self.inspect(instance))
    }

    async fn list(&self) -> Result<Vec<Container>, BackendError> {
        delegate!(self.list())
    }

    fn changes(&self) -> BoxStream<'static, Result<ContainerChange, BackendError>> {
        match self {
            Self::Docker(backend) => backend.changes(),
            Self::Simulated(backend) => backend.changes(),
        }
    }
}

impl Network for AnyNetwork {
    async fn ensure_network(&self, network: &NetworkPlan) -> Result<(), BackendError> {
        delegate!(self.ensure_network(network))
    }

    async fn rejoin(&self, instance: InstanceId, attachment: &NetworkAttachment) -> Result<(), BackendError> {
        delegate!(self.rejoin(instance, attachment))
    }

    async fn publish(&self, instance: InstanceId, attachment: &NetworkAttachment) -> Result<(), BackendError> {
        delegate!(self.publish(instance, attachment))
    }

    async fn unpublish(&self, instance: InstanceId) -> Result<(), BackendError> {
        delegate!(self.unpublish(instance))
    }

    async fn release_network(&self, network: NetworkId) -> Result<Released, BackendError> {
        delegate!(self.release_network(network))
    }

    async fn networks(&self) -> Result<Vec<NetworkId>, BackendError> {
        delegate!(self.networks())
    }
}
