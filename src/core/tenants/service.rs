//! `TenantService`: creates tenants, suspends and resumes them, and delivers what that changes to the caches of keys.

use cidr::Ipv4Cidr;

use super::store::{self, EnsuredTenant};
use crate::core::{
    db::{DbError, DualDb},
    identity::cache::{Propagation, Propagator},
};

/// Manages tenants. Cheap to clone.
#[derive(Clone)]
pub struct TenantService {
    db: DualDb,
}

/// A tenant that was suspended or resumed.
#[derive(Clone, Copy, Debug)]
pub struct Suspension {
    /// How many keys changed.
    pub keys: usize,
    /// Whether the change is in force everywhere.
    pub propagation: Propagation,
}

impl TenantService {
    /// Makes the service.
    pub fn new(db: DualDb) -> Self {
        Self { db }
    }

    /// Returns the tenant of this name, which is created with its network `default` when missing.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn ensure(&self, name: &str, default_cidr: Ipv4Cidr) -> Result<EnsuredTenant, DbError> {
        let tenant = store::ensure(&self.db, name, default_cidr).await?;
        if tenant.created {
            tracing::info!(tenant = %tenant.id, name, "created tenant");
        }
        Ok(tenant)
    }

    /// Refuses all keys of a tenant until it is resumed; `None`: there is no such tenant. Its instances go on.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn suspend(&self, name: &str, propagator: &Propagator) -> Result<Option<Suspension>, DbError> {
        self.set_suspended(name, true, propagator).await
    }

    /// Accepts the keys of a suspended tenant again; `None`: there is no such tenant.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn resume(&self, name: &str, propagator: &Propagator) -> Result<Option<Suspension>, DbError> {
        self.set_suspended(name, false, propagator).await
    }

    async fn set_suspended(
        &self,
        name: &str,
        suspended: bool,
        propagator: &Propagator,
    ) -> Result<Option<Suspension>, DbError> {
        let Some(changes) = store::suspend(&self.db, name, suspended).await? else { return Ok(None) };
        let propagation = propagator.propagate(&changes, true).await;
        Ok(Some(Suspension { keys: changes.len(), propagation }))
    }
}
