//! API keys in Postgres. Only hashes are stored; every change bumps `ver` and `changed_at`.

use time::OffsetDateTime;

use super::{
    Scope,
    cache::store::{Change, change},
};
use crate::core::{
    db::{Consistency, DbError, DualDb, Row},
    id::{KeyId, TenantId},
    page::{Page, PageRequest},
};

/// A key as it may be shown.
#[derive(Clone, Debug)]
pub struct KeyRecord {
    pub id: KeyId,
    /// Grows with each change.
    pub ver: i64,
    pub name: String,
    pub tenant: TenantId,
    pub scopes: Vec<Scope>,
    /// What differs from the general limits: `{"rps","burst"}`, or `{}`.
    pub limits: serde_json::Value,
    pub hint: String,
    pub created_at: OffsetDateTime,
    /// `None`: it came from a shell.
    pub created_by: Option<KeyId>,
    pub expires_at: Option<OffsetDateTime>,
    pub revoked_at: Option<OffsetDateTime>,
    /// Written every half minute.
    pub last_used_at: Option<OffsetDateTime>,
}

/// What a new key should be.
#[derive(Clone, Debug)]
pub struct KeySpec {
    pub id: KeyId,
    pub name: String,
    pub tenant: TenantId,
    pub scopes: Vec<Scope>,
    /// What differs from the general limits: `{"rps","burst"}`, or `{}`.
    pub limits: serde_json::Value,
    pub not_before: Option<OffsetDateTime>,
    pub expires_at: Option<OffsetDateTime>,
    pub created_by: Option<KeyId>,
}

/// The columns of a key `k` that `record` reads, but for its version, which goes by another name beside a second key.
/// A result names its columns: see `instance_columns`.
macro_rules! key_columns {
    () => {
        "k.id, k.name, k.tenant_id, k.scopes, k.limits, k.hint, k.created_at, k.created_by, k.expires_at, k.revoked_at"
    };
}
pub(in crate::core) use key_columns;

/// Revokes the tenant's key; answers whose it was. `None`: there is none. Revoked already: everybody is told once more,
/// for whoever did it may not have come to that yet.
///
/// # Errors
/// As the database says.
pub async fn revoke(
    db: &DualDb,
    tenant: Option<TenantId>,
    key: KeyId,
    by: KeyId,
) -> Result<Option<(TenantId, Vec<Change>)>, DbError> {
    let rows = db
        .write()
        .await?
        .query(
            "with hit as (
               select id, tenant_id, key_hash, ver, revoked_at from api_key where id = $1 and ($2::uuid is null or tenant_id = $2) for update),
             gone as (
               update api_key k set revoked_at = now(), revoked_by = $3, ver = k.ver + 1, changed_at = now()
               from hit where k.id = hit.id and k.revoked_at is null returning k.id, k.tenant_id, k.key_hash, k.ver),
             news as (
               select tenant_id, key_hash, ver from gone
               union all select tenant_id, key_hash, ver from hit where revoked_at is not null),
             told as (insert into cache_outbox (key_hash, ver, op) select key_hash, ver, 1 from news returning id),
             event as (
               insert into events (tenant_id, kind, detail)
               select tenant_id, 'key.revoked', jsonb_build_object('key_id', id, 'by', $3::uuid) from gone)
             select told.id as outbox, news.tenant_id, news.key_hash, news.ver, true as refused from news, told",
            &[&key.uuid(), &tenant.map(TenantId::uuid), &by.uuid()],
        )
        .await?;
    let tenant = rows.first().map(|row| TenantId::from(row.get::<_, uuid::Uuid>("tenant_id")));
    Ok(tenant.map(|tenant| (tenant, rows.iter().filter_map(change).collect())))
}

/// Suspends a tenant, or lets it in again: all its keys change at once. `None`: there is no such tenant.
///
/// The caches forget the keys, and ask: a tombstone told late, after a resumption, would outlast it.
///
/// The tenant's lock comes first, in a statement of its own: the next one then sees every key whose making had referred
/// to the tenant, and whoever makes one later waits, and is looked up in a tenant that has changed.
///
/// # Errors
/// As the database says.
pub async fn suspend(db: &DualDb, tenant: &str, suspended: bool) -> Result<Option<Vec<Change>>, DbError> {
    let conn = db.write().await?;
    conn.begin().await?;
    conn.query("select 1 from tenants where name = $1 for update", &[&tenant]).await?;
    let rows = conn
        .query(
            "with hit as (
               update tenants set suspended_at = case when $2 then coalesce(suspended_at, now()) end where name = $1
               returning id),
             changed as (
               update api_key k set ver = ver + 1, changed_at = now() from hit
               where k.tenant_id = hit.id and k.revoked_at is null returning k.key_hash, k.ver),
             told as (
               insert into cache_outbox (key_hash, ver, op) select key_hash, ver, 2 from changed
               returning id, key_hash, ver),
             event as (
               insert into events (tenant_id, kind)
               select id, case when $2 then 'tenant.suspended' else 'tenant.resumed' end from hit)
             select told.id as outbox, told.key_hash, told.ver, false as refused from hit left join told on true",
            &[&tenant, &suspended],
        )
        .await?;
    conn.commit().await?;
    // A row without a change has nothing to tell: the tenant has no keys.
    let told = rows.iter().filter(|row| row.get::<_, Option<i64>>("outbox").is_some());
    Ok((!rows.is_empty()).then(|| told.filter_map(change).collect()))
}

/// The tenant's key; `tenant` `None`: any tenant's.
///
/// # Errors
/// As the database says.
pub async fn get(db: &DualDb, tenant: Option<TenantId>, key: KeyId) -> Result<Option<KeyRecord>, DbError> {
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query(
                concat!(
                    "select ",
                    key_columns!(),
                    ", k.ver as key_ver, u.last_used_at
                     from api_key k left join api_key_usage u on u.key_id = k.id
                     where k.id = $1 and ($2::uuid is null or k.tenant_id = $2)"
                ),
                &[&key.uuid(), &tenant.map(TenantId::uuid)],
            )
            .await
        })
        .await?;
    Ok(rows.first().map(record))
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
                // As for instances. But for its name, which may be all escapes, an item has at most 640 bytes.
                concat!(
                    "select ",
                    key_columns!(),
                    ", k.key_ver, k.last_used_at, k.page_bytes
                     from (select ",
                    key_columns!(),
                    ", k.key_ver, k.last_used_at, k.bytes, sum(k.bytes) over (order by k.id desc) as page_bytes
                     from (select ",
                    key_columns!(),
                    ", k.ver as key_ver, u.last_used_at, least(640 + octet_length(to_json(k.name)::text), $4) as bytes
                     from api_key k left join api_key_usage u on u.key_id = k.id
                     where ($1::uuid is null or k.tenant_id = $1) and k.revoked_at is null
                       and ($2::uuid is null or k.id < $2)
                     order by k.id desc limit $3) k) k
                     where k.page_bytes - k.bytes <= $4 order by k.id desc"
                ),
                &[&tenant.map(TenantId::uuid), &page.before, &page.rows(), &PageRequest::BYTES_MAX],
            )
            .await
        })
        .await?;
    let rows = rows.iter().map(|row| (record(row), row.get("page_bytes")));
    Ok(page.finish(rows.collect(), |key: &KeyRecord| key.id.uuid()))
}

/// Reads `key_columns`, `key_ver` and `last_used_at`.
pub(in crate::core) fn record(row: &Row) -> KeyRecord {
    KeyRecord {
        id: KeyId::from(row.get::<_, uuid::Uuid>("id")),
        ver: row.get("key_ver"),
        name: row.get("name"),
        tenant: TenantId::from(row.get::<_, uuid::Uuid>("tenant_id")),
        scopes: scopes(row.get("scopes")),
        limits: row.get("limits"),
        hint: row.get("hint"),
        created_at: row.get("created_at"),
        created_by: row.get::<_, Option<uuid::Uuid>>("created_by").map(KeyId::from),
        expires_at: row.get("expires_at"),
        revoked_at: row.get("revoked_at"),
        last_used_at: row.get("last_used_at"),
    }
}

/// Scopes of a newer version that this one does not know grant nothing here.
pub(super) fn scopes(texts: Vec<String>) -> Vec<Scope> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}
