//! Joins containers to Docker's own bridge networks.
//!
//! Promises: what `Network` does. Docker plugs, addresses and publishes at start, so `publish` only verifies, and
//! `unpublish` has nothing to do: the ports go with the container.
//! Refuses: isolation between networks beyond Docker's own; overlapping CIDRs on one host.

use std::sync::Arc;

use bollard::models::PortMap;

use super::{bridge, client::Engine, labels, observe, spec};
use crate::{
    backend::{BackendError, ContainerState, Network, NetworkAttachment, NetworkPlan, PortPlan, Released},
    core::id::{InstanceId, NetworkId},
};

#[derive(Clone)]
pub struct DockerNetwork {
    pub(super) engine: Arc<Engine>,
}

impl Network for DockerNetwork {
    async fn ensure_network(&self, network: &NetworkPlan) -> Result<(), BackendError> {
        let lock = self.engine.networks.of(network.id);
        let _changing = lock.existence.write().await;
        bridge::ensure(&self.engine, network).await
    }

    async fn rejoin(&self, instance: InstanceId, attachment: &NetworkAttachment) -> Result<(), BackendError> {
        let Some(found) = observe::found(&self.engine, instance).await? else { return Ok(()) };
        if found.observed.state == ContainerState::Running {
            return Ok(());
        }
        let lock = self.engine.networks.of(attachment.network.id);
        // No release between leaving the network and joining it.
        let _using = lock.existence.read().await;
        let mut networks = found.raw.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let endpoint = networks.remove(&labels::network_name(attachment.network.id));
        bridge::rejoin(&self.engine, &found.observed.container_id, endpoint, attachment).await
    }

    async fn publish(&self, instance: InstanceId, attachment: &NetworkAttachment) -> Result<(), BackendError> {
        let gone = || BackendError::Unavailable(format!("the container of {instance} is gone").into());
        let found = observe::found(&self.engine, instance).await?.ok_or_else(gone)?;
        if found.observed.state != ContainerState::Running {
            // It ended already and its ports with it: whoever listens to changes tells.
            return Ok(());
        }
        let published = found.raw.network_settings.and_then(|settings| settings.ports).unwrap_or_default();
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
        let lock = self.engine.networks.of(network);
        let _changing = lock.existence.write().await;
        bridge::release(&self.engine, network).await
    }

    async fn networks(&self) -> Result<Vec<NetworkId>, BackendError> {
        bridge::all(&self.engine).await
    }
}

fn is_published(published: &PortMap, port: &PortPlan) -> bool {
    let host = port.host.to_string();
    let bindings = published.get(&spec::port_key(port)).and_then(Option::as_ref);
    bindings.is_some_and(|bindings| bindings.iter().any(|binding| binding.host_port.as_ref() == Some(&host)))
}
