//! Tenants in Postgres.

use cidr::Ipv4Cidr;

use crate::core::{
    db::{DbError, DualDb},
    id::{NetworkId, TenantId},
};

/// The tenant of that name, created with its `default` network when missing. `true`: it was created.
///
/// # Errors
/// As the database says.
pub async fn ensure(db: &DualDb, name: &str, default_cidr: Ipv4Cidr) -> Result<(TenantId, bool), DbError> {
    let rows = db
        .write()
        .await?
        .query(
            "with new as (
               insert into tenants (id, name) values ($1, $2)
               -- No change, but it locks and returns the row that is there, whoever wrote it.
               on conflict (name) do update set name = excluded.name returning id, xmax = 0 as created),
             network as (
               insert into networks (id, tenant_id, name, cidr) select $3, id, 'default', $4 from new where created)
             select id, created from new",
            &[&TenantId::new().uuid(), &name, &NetworkId::new().uuid(), &cidr::IpCidr::V4(default_cidr)],
        )
        .await?;
    let row = rows.first().ok_or_else(|| DbError::Invariant("no tenant".into()))?;
    Ok((TenantId::from(row.get::<_, uuid::Uuid>(0)), row.get(1)))
}
