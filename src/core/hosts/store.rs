//! The cluster and its hosts in Postgres.

use uuid::Uuid;

use crate::core::{
    db::{Consistency, DbError, DualDb},
    id::ClusterId,
};

/// This installation's id, written by the first migration. `None`: `app migrate` has not run.
///
/// # Errors
/// As the database says.
pub async fn cluster(db: &DualDb) -> Result<Option<ClusterId>, DbError> {
    let read = db.read(Consistency::Primary, |c| async move { c.query("select id from cluster", &[]).await });
    match read.await {
        Ok(rows) => Ok(rows.first().map(|row| row.get::<_, Uuid>(0).into())),
        // No such table.
        Err(DbError::Statement { code, .. }) if code == "42P01" => Ok(None),
        Err(error) => Err(error),
    }
}
