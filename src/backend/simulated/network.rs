//! Pretends to join containers to networks.
//!
//! Promises: what `Network` does. A network is a directory with one entry per container, so removing it while it is in
//! use fails by itself, between processes too.
//! Refuses: any packet; overlapping CIDRs are nobody's concern here.

use std::{fs, io::ErrorKind, sync::Arc};

use super::machine::{Machine, broken};
use crate::{
    backend::{BackendError, Network, NetworkAttachment, NetworkPlan, Released},
    core::id::{InstanceId, NetworkId},
};

#[derive(Clone)]
pub struct SimulatedNetwork {
    pub(super) machine: Arc<Machine>,
}

impl Network for SimulatedNetwork {
    async fn ensure_network(&self, network: &NetworkPlan) -> Result<(), BackendError> {
        let ensure = || fs::create_dir_all(self.machine.network(network.id)).map_err(broken);
        self.machine.chance.perform("ensure_network", ensure).await
    }

    async fn rejoin(&self, _instance: InstanceId, _attachment: &NetworkAttachment) -> Result<(), BackendError> {
        self.machine.chance.perform("rejoin", || Ok(())).await
    }

    async fn publish(&self, _instance: InstanceId, _attachment: &NetworkAttachment) -> Result<(), BackendError> {
        self.machine.chance.perform("publish", || Ok(())).await
    }

    async fn unpublish(&self, _instance: InstanceId) -> Result<(), BackendError> {
        self.machine.chance.perform("unpublish", || Ok(())).await
    }

    async fn release_network(&self, network: NetworkId) -> Result<Released, BackendError> {
        let release = || match fs::remove_dir(self.machine.network(network)) {
            Ok(()) => Ok(Released::Gone),
            Err(error) => match error.kind() {
                ErrorKind::NotFound => Ok(Released::Gone),
                ErrorKind::DirectoryNotEmpty => Ok(Released::Used),
                _ => Err(broken(error)),
            },
        };
        self.machine.chance.perform("release_network", release).await
    }

    async fn networks(&self) -> Result<Vec<NetworkId>, BackendError> {
        self.machine.networks()
    }
}
