//! One lock per network: containers are created under its shared half, the network appears and goes under the other.
//!
//! Promises: a network is never removed between the check that it exists and the creation of a container on it, in
//! this process; locks of networks that nobody uses are forgotten.
//! Refuses: guarding against another process; there, the engine's own answers decide.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::RwLock;

use crate::core::id::NetworkId;

#[derive(Default)]
pub(super) struct NetworkLocks(Mutex<HashMap<NetworkId, Weak<RwLock<()>>>>);

impl NetworkLocks {
    pub(super) fn of(&self, network: NetworkId) -> Arc<RwLock<()>> {
        // A panic while holding it cannot leave the map half-changed.
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(&network).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(RwLock::new(()));
        locks.insert(network, Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lock_per_network_and_none_left_over() {
        let locks = NetworkLocks::default();
        let (a, b) = (NetworkId::new(), NetworkId::new());
        let held = locks.of(a);
        assert!(Arc::ptr_eq(&held, &locks.of(a)));
        assert!(!Arc::ptr_eq(&held, &locks.of(b)));
        drop(held);
        let _new = locks.of(NetworkId::new());
        assert_eq!(locks.0.lock().expect("no other thread").len(), 1);
    }
}
