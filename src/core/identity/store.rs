//! API keys in Postgres. Only hashes are stored; every change bumps `ver` and `changed_at`.

use time::OffsetDateTime;

use super::{Caller, IdentityError, Scope};
use crate::core::{
    db::{Consistency, DbError, DualDb, Row},
    id::{KeyId, TenantId},
    page::{Page, PageRequest},
};

/// A key as it may be shown.
#[derive(Clone, Debug)]
pub struct KeyRecord {
    pub id: KeyId,
    pub name: String,
    pub tenant: TenantId,
    pub scopes: Vec<Scope>,
    pub hint: String,
    pub created_at: OffsetDateTime,
    pub expires_at: Option<OffsetDateTime>,
    pub revoked_at: Option<OffsetDateTime>,
}

/// The valid key with this hash, with the stored hash for comparison in constant time.
pub(super) async fn valid_by_hash(db: &DualDb, hash: [u8; 32]) -> Result<Option<(Vec<u8>, Caller)>, IdentityError> {
    // The primary: a replica may not know of a revocation yet.
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query(
                "select k.key_hash, k.id, k.name, k.tenant_id, k.scopes, k.expires_at
                 from api_key k join tenants t on t.id = k.tenant_id
                 where k.key_hash = $1 and k.revoked_at is null and t.suspended_at is null
                   and (k.expires_at is null or k.expires_at > now())
                   and (k.not_before is null or k.not_before <= now())",
                &[&hash.as_slice()],
            )
            .await
        })
        .await?;
    Ok(rows.first().map(|row| {
        let caller = Caller {
            key: KeyId::from(row.get::<_, uuid::Uuid>(1)),
            name: row.get(2),
            tenant: TenantId::from(row.get::<_, uuid::Uuid>(3)),
            scopes: scopes(row.get(4)),
            expires_at: row.get(5),
        };
        (row.get(0), caller)
    }))
}

/// What a new key should be.
#[derive(Clone, Debug)]
pub struct KeySpec {
    pub id: KeyId,
    pub name: String,
    pub tenant: TenantId,
    pub scopes: Vec<Scope>,
    pub expires_at: Option<OffsetDateTime>,
    pub created_by: Option<KeyId>,
}

/// Whether there is such a key; `tenant`: of this one only.
///
/// # Errors
/// As the database says.
pub async fn exists(db: &DualDb, tenant: Option<TenantId>, key: KeyId) -> Result<bool, DbError> {
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query(
                "select 1 from api_key where id = $1 and ($2::uuid is null or tenant_id = $2)",
                &[&key.uuid(), &tenant.map(TenantId::uuid)],
            )
            .await
        })
        .await?;
    Ok(!rows.is_empty())
}

/// Revokes the tenant's key at once. `false`: there is none. Revoked already is success.
///
/// # Errors
/// As the database says.
pub async fn revoke(db: &DualDb, tenant: Option<TenantId>, key: KeyId, by: KeyId) -> Result<bool, DbError> {
    let rows = db
        .write()
        .await?
        .query(
            "with hit as (select id from api_key where id = $1 and ($2::uuid is null or tenant_id = $2) for update),
             gone as (
               update api_key k set revoked_at = now(), revoked_by = $3, ver = ver + 1, changed_at = now()
               from hit where k.id = hit.id and k.revoked_at is null returning k.tenant_id, k.id),
             event as (
               insert into events (tenant_id, kind, detail)
               select tenant_id, 'key.revoked', jsonb_build_object('key_id', id, 'by', $3::uuid) from gone)
             select 1 from hit",
            &[&key.uuid(), &tenant.map(TenantId::uuid), &by.uuid()],
        )
        .await?;
    Ok(!rows.is_empty())
}

/// The tenant's keys that are not revoked, newest first; `None`: of all tenants.
///
/// # Errors
/// As the database says.
pub async fn list(
    db: &DualDb,
    consistency: Consistency,
    tenant: Option<TenantId>,
    page: PageRequest,
) -> Result<Page<KeyRecord>, DbError> {
    let rows = db
        .read(consistency, |c| async move {
            c.query(
                "select id, name, tenant_id, scopes, hint, created_at, expires_at, revoked_at from api_key
                 where ($1::uuid is null or tenant_id = $1) and revoked_at is null and ($2::uuid is null or id < $2)
                 order by id desc limit $3",
                &[&tenant.map(TenantId::uuid), &page.before, &page.rows()],
            )
            .await
        })
        .await?;
    Ok(page.finish(rows.iter().map(record).collect(), |key: &KeyRecord| key.id.uuid()))
}

pub(in crate::core) fn record(row: &Row) -> KeyRecord {
    KeyRecord {
        id: KeyId::from(row.get::<_, uuid::Uuid>("id")),
        name: row.get("name"),
        tenant: TenantId::from(row.get::<_, uuid::Uuid>("tenant_id")),
        scopes: scopes(row.get("scopes")),
        hint: row.get("hint"),
        created_at: row.get("created_at"),
        expires_at: row.get("expires_at"),
        revoked_at: row.get("revoked_at"),
    }
}

/// Scopes of a newer version that this one does not know grant nothing here.
fn scopes(texts: Vec<String>) -> Vec<Scope> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}
