//! Reading API keys from Postgres. Only hashes are stored; every change of a key raises `ver` and sets `changed_at`.

use time::OffsetDateTime;
use tokio_postgres::types::Json;

use super::{caller::Scope, invalidation::Invalidation, limits::KeyLimits};
use crate::core::{
    db::{Consistency, DbError, DualDb, Row, WriteConn, column, decode_one},
    id::{KeyId, TenantId},
    page::{Page, PageRequest},
};

const LIST: &str = include_str!("list.sql");

/// A key as it may be shown: without its text and its hash.
#[derive(Clone, Debug)]
pub struct KeyRecord {
    /// The key's id.
    pub id: KeyId,
    /// Grows with each change of the key.
    pub ver: i64,
    /// The name of the key in lists.
    pub name: String,
    /// The tenant that owns it.
    pub tenant: TenantId,
    /// Its scopes.
    pub scopes: Vec<Scope>,
    /// How often it may be used.
    pub limits: KeyLimits,
    /// Its prefix and last characters.
    pub hint: String,
    /// When it was created.
    pub created_at: OffsetDateTime,
    /// The key that created it; `None`: it was created from a shell.
    pub created_by: Option<KeyId>,
    /// When it expires; `None`: never.
    pub expires_at: Option<OffsetDateTime>,
    /// When it was revoked.
    pub revoked_at: Option<OffsetDateTime>,
    /// When it was last used, up to half a minute late.
    pub last_used_at: Option<OffsetDateTime>,
}

impl KeyRecord {
    /// Reads the columns of a key, with its version as `key_ver`. A scope that this release does not know is an error:
    /// such a key cannot be checked against what a caller may grant, so it must not be copied or changed here.
    pub(super) fn from_row(row: &Row) -> Result<Self, DbError> {
        let limits: Json<KeyLimits> = column(row, "limits")?;
        Ok(Self {
            id: column(row, "id")?,
            ver: column(row, "key_ver")?,
            name: column(row, "name")?,
            tenant: column(row, "tenant_id")?,
            scopes: column(row, "scopes")?,
            limits: limits.0,
            hint: column(row, "hint")?,
            created_at: column(row, "created_at")?,
            created_by: column(row, "created_by")?,
            expires_at: column(row, "expires_at")?,
            revoked_at: column(row, "revoked_at")?,
            last_used_at: column(row, "last_used_at")?,
        })
    }
}

/// Returns the key from the primary; `None`: there is none. `tenant`: whose key it must be, `None` for any.
///
/// # Errors
/// `Invariant`, with the key's id, when the row cannot be read; else as for `DualDb::read`.
pub(super) async fn get(db: &DualDb, tenant: Option<TenantId>, key: KeyId) -> Result<Option<KeyRecord>, DbError> {
    let rows = db
        .read(Consistency::Primary, |c| async move {
            c.query(
                "select k.id, k.name, k.tenant_id, k.scopes, k.limits, k.hint, k.created_at, k.created_by, k.expires_at,
                   k.revoked_at, k.ver as key_ver, u.last_used_at
                 from api_key k left join api_key_usage u on u.key_id = k.id
                 where k.id = $1 and ($2::uuid is null or k.tenant_id = $2)",
                &[&key, &tenant],
            )
            .await
        })
        .await?;
    rows.first().map(|row| decode_one(row, "key", KeyRecord::from_row)).transpose()
}

/// Returns a page of keys that are not revoked, newest first. `tenant`: whose keys, `None` for those of all. Rows that
/// cannot be read are logged and left out.
///
/// # Errors
/// As for `DualDb::read`.
pub(super) async fn list(
    db: &DualDb,
    consistency: Consistency,
    tenant: Option<TenantId>,
    page: PageRequest,
) -> Result<Page<KeyRecord>, DbError> {
    let rows = db
        .read(consistency, |c| async move {
            c.query(LIST, &[&tenant, &page.before, &page.rows(), &PageRequest::BYTES_MAX]).await
        })
        .await?;
    page.decode(&rows, "key", KeyRecord::from_row)
}

/// Returns the present state of a key as a change to deliver, for a request that is repeated: the process that
/// committed the change may have ended before it delivered it.
///
/// # Errors
/// As for `WriteConn::query`.
pub(super) async fn current_invalidation(conn: &WriteConn, key: KeyId) -> Result<Vec<Invalidation>, DbError> {
    let sql =
        "select null::bigint as outbox, key_hash, ver, revoked_at is not null as refused from api_key where id = $1";
    conn.query(sql, &[&key]).await?.iter().map(Invalidation::from_row).collect()
}
