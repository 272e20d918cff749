//! The locks of networks, within this process.
//!
//! They keep a network from being removed between the check that it exists and the creation of a container on it, and
//! make containers join and leave a network one at a time. Other processes are not excluded; towards them the engine's
//! own answers decide.
//!
//! The order in which several are taken: `existence`, `endpoints`, a permit of `Engine::start_permits`.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, RwLock};

use crate::core::id::NetworkId;

/// The locks of one network.
#[derive(Default)]
pub(super) struct NetworkLock {
    /// Held shared while a container is created on the network, and exclusively while the network is created or
    /// removed.
    pub(super) existence: RwLock<()>,
    /// Held while a container joins or leaves. When several do so at the same time, engines before 28.1 count them
    /// wrongly and then never remove the network (ADR 16).
    pub(super) endpoints: AsyncMutex<()>,
}

/// The locks of all networks; those that are not in use are dropped.
#[derive(Default)]
pub(super) struct NetworkLocks(Mutex<HashMap<NetworkId, Weak<NetworkLock>>>);

impl NetworkLocks {
    /// Returns the locks of a network, the same ones to all who use it at this time.
    pub(super) fn get(&self, network: NetworkId) -> Arc<NetworkLock> {
        let mut locks = self.0.lock();
        if let Some(lock) = locks.get(&network).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::<NetworkLock>::default();
        locks.insert(network, Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_locks_are_shared_while_used_and_dropped_afterwards() {
        let locks = NetworkLocks::default();
        let (a, b) = (NetworkId::new(), NetworkId::new());

        let lock = locks.get(a);

        assert!(Arc::ptr_eq(&lock, &locks.get(a)));
        assert!(!Arc::ptr_eq(&lock, &locks.get(b)));
        drop(lock);
        let _new = locks.get(NetworkId::new());
        assert_eq!(locks.0.lock().len(), 1);
    }
}
