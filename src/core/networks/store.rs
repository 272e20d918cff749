//! Reading networks.

use time::OffsetDateTime;

use crate::core::{
    db::{Consistency, DbError, DualDb, Row, column, decode_one},
    id::{NetworkId, TenantId},
    page::{Page, PageRequest},
};

/// A network, as it is stored.
#[derive(Clone, Debug)]
pub struct NetworkRecord {
    /// Its id.
    pub id: NetworkId,
    /// Its name, unique per tenant.
    pub name: String,
    /// Its owner.
    pub tenant: TenantId,
    /// Its addresses.
    pub cidr: cidr::IpCidr,
    /// When it was made.
    pub created_at: OffsetDateTime,
}

/// Reads the tenant's network from the primary; `None`: the tenant has none of this id.
///
/// # Errors
/// `Invariant` when the row cannot be read; others of `DualDb::read`.
pub async fn get(db: &DualDb, tenant: TenantId, id: NetworkId) -> Result<Option<NetworkRecord>, DbError> {
    let sql = "select id, name, tenant_id, cidr, created_at from networks where id = $1 and tenant_id = $2";
    let rows = db.read(Consistency::Primary, |c| async move { c.query(sql, &[&id, &tenant]).await }).await?;
    rows.first().map(|row| decode_one(row, "network", record)).transpose()
}

/// Lists networks, newest first; `None`: those of all tenants.
///
/// # Errors
/// Those of `DualDb::read`. A row that cannot be read is logged and left out.
pub async fn list(
    db: &DualDb,
    consistency: Consistency,
    tenant: Option<TenantId>,
    page: PageRequest,
) -> Result<Page<NetworkRecord>, DbError> {
    let rows = db
        .read(consistency, |c| async move {
            c.query(
                // Networks are so small that 500 of them fit on a page.
                "select id, name, tenant_id, cidr, created_at, 0::bigint as page_bytes from networks
                 where ($1::uuid is null or tenant_id = $1) and ($2::uuid is null or id < $2)
                 order by id desc limit $3",
                &[&tenant, &page.before, &page.rows()],
            )
            .await
        })
        .await?;
    page.decode(&rows, "network", record)
}

fn record(row: &Row) -> Result<NetworkRecord, DbError> {
    Ok(NetworkRecord {
        id: column(row, "id")?,
        name: column(row, "name")?,
        tenant: column(row, "tenant_id")?,
        cidr: column(row, "cidr")?,
        created_at: column(row, "created_at")?,
    })
}
