//! Reading the cluster's own row.

use crate::core::{
    db::{Consistency, DbError, DualDb, column},
    id::ClusterId,
};

/// SQLSTATE `undefined_table`.
const UNDEFINED_TABLE: &str = "42P01";

/// Reads this cluster's id, which the first migration writes; `None`: `app migrate` has not run.
///
/// # Errors
/// Those of `DualDb::read`.
pub async fn cluster(db: &DualDb) -> Result<Option<ClusterId>, DbError> {
    let read = db.read(Consistency::Primary, |c| async move { c.query("select id from cluster", &[]).await });
    match read.await {
        Ok(rows) => rows.first().map(|row| column(row, "id")).transpose(),
        Err(DbError::Statement { code, .. }) if code == UNDEFINED_TABLE => Ok(None),
        Err(error) => Err(error),
    }
}
