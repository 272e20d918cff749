//! The simulated networks: a network is a directory with one file per container that uses it.
//!
//! Removing the directory of a network in use fails, also between processes. No packet is sent, so `rejoin`, `publish`
//! and `unpublish` have no effect.

use std::{fs, io::ErrorKind, sync::Arc};

use super::state_files::{StateFiles, file_error};
use crate::{
    backend::{BackendError, Network, NetworkAttachment, NetworkPlan, Released},
    core::id::{InstanceId, NetworkId},
};

/// The networks of a simulated host.
#[derive(Clone)]
pub struct SimulatedNetwork {
    pub(super) files: Arc<StateFiles>,
}

impl Network for SimulatedNetwork {
    async fn ensure_network(&self, network: &NetworkPlan) -> Result<(), BackendError> {
        let ensure = || fs::create_dir_all(self.files.network_directory(network.id)).map_err(file_error);
        self.files.faults.perform("ensure_network", ensure).await
    }

    async fn rejoin(&self, _instance: InstanceId, _attachment: &NetworkAttachment) -> Result<(), BackendError> {
        self.files.faults.perform("rejoin", || Ok(())).await
    }

    async fn publish(&self, _instance: InstanceId, _attachment: &NetworkAttachment) -> Result<(), BackendError> {
        self.files.faults.perform("publish", || Ok(())).await
    }

    async fn unpublish(&self, _instance: InstanceId) -> Result<(), BackendError> {
        self.files.faults.perform("unpublish", || Ok(())).await
    }

    async fn release_network(&self, network: NetworkId) -> Result<Released, BackendError> {
        let release = || match fs::remove_dir(self.files.network_directory(network)) {
            Ok(()) => Ok(Released::Gone),
            Err(error) => match error.kind() {
                ErrorKind::NotFound => Ok(Released::Gone),
                ErrorKind::DirectoryNotEmpty => Ok(Released::InUse),
                _ => Err(file_error(error)),
            },
        };
        self.files.faults.perform("release_network", release).await
    }

    async fn networks(&self) -> Result<Vec<NetworkId>, BackendError> {
        self.files.networks()
    }
}
