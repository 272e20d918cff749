//! How fresh a list must be: a caller sees its own writes, others' may lag behind.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::core::{db::Consistency, id::TenantId};

/// A replica that lags longer than this is out of order.
const WINDOW: Duration = Duration::from_secs(5);
const PRUNE_ABOVE: usize = 10_000;

/// Tenants that wrote through this process a moment ago.
#[derive(Default)]
pub struct RecentWriters(Mutex<HashMap<TenantId, Instant>>);

impl RecentWriters {
    pub fn wrote(&self, tenant: TenantId) {
        let mut writers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if writers.len() > PRUNE_ABOVE {
            writers.retain(|_, at| at.elapsed() < WINDOW);
        }
        writers.insert(tenant, Instant::now());
    }

    /// What a list for this tenant may be read from.
    pub fn consistency(&self, tenant: TenantId) -> Consistency {
        let writers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match writers.get(&tenant) {
            Some(at) if at.elapsed() < WINDOW => Consistency::Primary,
            _ => Consistency::Any,
        }
    }
}
