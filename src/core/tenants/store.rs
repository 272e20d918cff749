//! Tenants in Postgres.

use cidr::Ipv4Cidr;

use crate::core::{
    db::{DbError, DualDb, column},
    id::{NetworkId, TenantId},
    identity::Invalidation,
};

const ENSURE: &str = include_str!("ensure.sql");
const SUSPEND: &str = include_str!("suspend.sql");

/// A tenant that exists now.
#[derive(Clone, Copy, Debug)]
pub struct EnsuredTenant {
    /// Its id.
    pub id: TenantId,
    /// Whether this call created it.
    pub created: bool,
}

/// Creates the tenant with its network `default`, unless a tenant has the name.
///
/// # Errors
/// As for `WriteConn::query`.
pub async fn ensure(db: &DualDb, name: &str, default_cidr: Ipv4Cidr) -> Result<EnsuredTenant, DbError> {
    let cidr = cidr::IpCidr::V4(default_cidr);
    let rows = db.write().await?.query(ENSURE, &[&TenantId::new(), &name, &NetworkId::new(), &cidr]).await?;
    let row = rows.first().ok_or_else(|| DbError::Invariant("creating a tenant returned no row".into()))?;
    Ok(EnsuredTenant { id: column(row, "id")?, created: column(row, "created")? })
}

/// Suspends or resumes a tenant, and returns the changes of its keys; `None`: there is no such tenant.
///
/// The tenant is locked first, in a statement of its own. So the next statement sees every key whose creation had
/// referred to the tenant by then, and a key that is created later waits for the lock and is looked up in a tenant that
/// has changed.
///
/// # Errors
/// As for `WriteConn::query`.
pub(super) async fn suspend(db: &DualDb, tenant: &str, suspended: bool) -> Result<Option<Vec<Invalidation>>, DbError> {
    let conn = db.write().await?;
    conn.begin().await?;
    conn.query("select 1 from tenants where name = $1 for update", &[&tenant]).await?;
    let rows = conn.query(SUSPEND, &[&tenant, &suspended]).await?;
    let mut changes = Vec::with_capacity(rows.len());
    for row in &rows {
        // A row without a change is that of a tenant without keys.
        if column::<Option<i64>>(row, "outbox")?.is_some() {
            changes.push(Invalidation::from_row(row)?);
        }
    }
    conn.commit().await?;
    Ok((!rows.is_empty()).then_some(changes))
}
