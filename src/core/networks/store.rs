//! Networks in Postgres.

use time::OffsetDateTime;

use crate::core::{
    db::{Consistency, DbError, DualDb, Row},
    id::{NetworkId, TenantId},
    page::{Page, PageRequest},
};

#[derive(Clone, Debug)]
pub struct NetworkRecord {
    pub id: NetworkId,
    pub name: String,
    pub tenant: TenantId,
    pub cidr: cidr::IpCidr,
    pub created_at: OffsetDateTime,
}

/// The tenant's network; another tenant's is none.
///
/// # Errors
/// As the database says.
pub async fn get(db: &DualDb, tenant: TenantId, id: NetworkId) -> Result<Option<NetworkRecord>, DbError> {
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query(
                "select id, name, tenant_id, cidr, created_at from networks where id = $1 and tenant_id = $2",
                &[&id.uuid(), &tenant.uuid()],
            )
            .await
        })
        .await?;
    Ok(rows.first().map(record))
}

/// The tenant's networks, newest first; `None`: of all tenants.
///
/// # Errors
/// As the database says.
pub async fn list(
    db: &DualDb,
    consistency: Consistency,
    tenant: Option<TenantId>,
    page: PageRequest,
) -> Result<Page<NetworkRecord>, DbError> {
    let rows = db
        .read(consistency, |c| async move {
            c.query(
                "select id, name, tenant_id, cidr, created_at from networks
                 where ($1::uuid is null or tenant_id = $1) and ($2::uuid is null or id < $2)
                 order by id desc limit $3",
                &[&tenant.map(TenantId::uuid), &page.before, &page.rows()],
            )
            .await
        })
        .await?;
    // So small that 500 of them fit.
    let rows = rows.iter().map(|row| (record(row), 0));
    Ok(page.finish(rows.collect(), |network: &NetworkRecord| network.id.uuid()))
}

fn record(row: &Row) -> NetworkRecord {
    NetworkRecord {
        id: NetworkId::from(row.get::<_, uuid::Uuid>("id")),
        name: row.get("name"),
        tenant: TenantId::from(row.get::<_, uuid::Uuid>("tenant_id")),
        cidr: row.get("cidr"),
        created_at: row.get("created_at"),
    }
}
