//! Attaches containers to Docker's bridge networks.
//!
//! Docker attaches, addresses and publishes a container when it starts. So `publish` only verifies the ports, and
//! `unpublish` does nothing: the ports are withdrawn with the container. Networks are isolated from each other as far
//! as Docker isolates them, and cannot overlap on one host.

use std::sync::Arc;

use bollard::models::PortMap;

use super::{bridge, client::Engine, inspect, labels, spec};
use crate::{
    backend::{BackendError, ContainerState, Network, NetworkAttachment, NetworkPlan, PortPlan, Released},
    core::id::{InstanceId, NetworkId},
};

/// The networks of a Docker engine.
#[derive(Clone)]
pub struct DockerNetwork {
    pub(super) engine: Arc<Engine>,
}

impl Network for DockerNetwork {
    async fn ensure_network(&self, network: &NetworkPlan) -> Result<(), BackendError> {
        let lock = self.engine.network_locks.get(network.id);
        let _exclusive = lock.existence.write().await;
        bridge::ensure(&self.engine, network).await
    }

    async fn rejoin(&self, instance: InstanceId, attachment: &NetworkAttachment) -> Result<(), BackendError> {
        let Some(inspected) = inspect::find(&self.engine, instance).await? else { return Ok(()) };
        if inspected.container.state == ContainerState::Running {
            return Ok(());
        }
        let lock = self.engine.network_locks.get(attachment.network.id);
        // The network must not be released between leaving and joining it.
        let _shared = lock.existence.read().await;
        let mut networks =
            inspected.response.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let endpoint = networks.remove(&labels::network_name(attachment.network.id));
        bridge::rejoin(&self.engine, &inspected.container.container_id, endpoint, attachment).await
    }

    async fn publish(&self, instance: InstanceId, attachment: &NetworkAttachment) -> Result<(), BackendError> {
        let gone = || BackendError::Unavailable(format!("the container of {instance} is gone").into());
        let inspected = inspect::find(&self.engine, instance).await?.ok_or_else(gone)?;
        if inspected.container.state != ContainerState::Running {
            // Its process has ended already, and the ports with it. The reconciliation handles that.
            return Ok(());
        }
        let published = inspected.response.network_settings.and_then(|settings| settings.ports).unwrap_or_default();
        match attachment.ports.iter().find(|port| !is_published(&published, port)) {
            None => Ok(()),
            Some(port) => Err(BackendError::NetworkSetup(
                format!(
                    "host port {} does not lead to port {} of the running container",
                    port.host,
                    spec::port_key(port)
                )
                .into(),
            )),
        }
    }

    async fn unpublish(&self, _instance: InstanceId) -> Result<(), BackendError> {
        Ok(())
    }

    async fn release_network(&self, network: NetworkId) -> Result<Released, BackendError> {
        let lock = self.engine.network_locks.get(network);
        let _exclusive = lock.existence.write().await;
        bridge::release(&self.engine, network).await
    }

    async fn networks(&self) -> Result<Vec<NetworkId>, BackendError> {
        bridge::list(&self.engine).await
    }
}

/// Returns whether the engine reports the port as published.
fn is_published(published: &PortMap, port: &PortPlan) -> bool {
    let host = port.host.to_string();
    let bindings = published.get(&spec::port_key(port)).and_then(Option::as_ref);
    bindings.is_some_and(|bindings| bindings.iter().any(|binding| binding.host_port.as_ref() == Some(&host)))
}
