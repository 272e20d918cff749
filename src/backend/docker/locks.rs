//! What must not happen at once to one network, in this process.
//!
//! Promises: a network is never removed between the check that it exists and the creation of a container on it; starts and
//! removals change its endpoints one at a time, as far as the engine answers within a minute; locks of networks that nobody
//! uses are forgotten.
//! Refuses: guarding against another process; there, the engine's own answers decide.
//!
//! Order, for whoever takes several: existence, endpoints, a turn of `Engine::starts`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{Mutex as AsyncMutex, RwLock};

use crate::core::id::NetworkId;

#[derive(Default)]
pub(super) struct NetworkLock {
    /// Containers are created under its shared half, the network appears and goes under the other.
    pub(super) existence: RwLock<()>,
    /// Held while a container joins or leaves: engines before 28.1 lose count when several do at once, and then keep the
    /// network for good (ADR 16).
    pub(super) endpoints: AsyncMutex<()>,
}

#[derive(Default)]
pub(super) struct NetworkLocks(Mutex<HashMap<NetworkId, Weak<NetworkLock>>>);

impl NetworkLocks {
    pub(super) fn of(&self, network: NetworkId) -> Arc<NetworkLock> {
        // A panic while holding it cannot leave the map half-changed.
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
