//! Deleting rows that no longer serve anything: finished jobs and deleted instances after 30 days.
//!
//! Each call deletes at most 1000 rows, so that it locks little and stays within the statement time-out. Clients see a
//! deleted instance for 24 hours only (`instances::store`).

use crate::core::db::{DbError, DualDb};

/// Deletes jobs that finished over 30 days ago.
///
/// # Errors
/// `Unavailable`, `ReadOnly`, `Locked` or `RolledBack`: the next round deletes them. `Statement` for a bug.
pub async fn delete_finished_jobs(db: &DualDb) -> Result<(), DbError> {
    db.write()
        .await?
        .query(
            "delete from jobs where id = any(array(
               select id from jobs where finished_at < now() - interval '30 days' limit 1000))",
            &[],
        )
        .await
        .map(drop)
}

/// Deletes the rows of instances that were deleted over 30 days ago, with their jobs.
///
/// # Errors
/// `Unavailable`, `ReadOnly`, `Locked` or `RolledBack`: the next round deletes them. `Statement` for a bug.
pub async fn delete_old_instances(db: &DualDb) -> Result<(), DbError> {
    db.write()
        .await?
        .query(
            "delete from instances where id = any(array(
               select id from instances where status = 'deleted' and deleted_at < now() - interval '30 days'
               limit 1000))",
            &[],
        )
        .await
        .map(drop)
}
