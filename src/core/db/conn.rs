//! Connections by intent: a `ReadConn` can only query, a `WriteConn` can also open a transaction.
//!
//! A statement dropped or timed out in flight keeps running in the server and would delay the next user of its
//! connection; so a connection that is not at rest when dropped is closed instead of going back to the pool.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use deadpool_postgres::Object;
pub use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::DbError;

/// A statement's parameter.
pub type Param<'a> = &'a (dyn ToSql + Sync);

/// The server gives up after 2 s (`statement_timeout`); a server that hangs cannot, so we do.
const DEADLINE: Duration = Duration::from_millis(2500);

struct Conn {
    role: &'static str,
    object: Option<Object>,
    at_rest: AtomicBool,
}

impl Conn {
    async fn query(&self, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, DbError> {
        let object = self.object();
        self.within_deadline(async {
            let statement = object.prepare_cached(sql).await?;
            object.query(&statement, params).await
        })
        .await
    }

    fn object(&self) -> &Object {
        self.object.as_ref().expect("taken only in drop")
    }

    async fn within_deadline<T>(
        &self,
        op: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, DbError> {
        let was_at_rest = self.at_rest.swap(false, Ordering::Relaxed);
        let started = Instant::now();
        let result = match tokio::time::timeout(DEADLINE, op).await {
            Ok(result) => {
                self.at_rest.store(was_at_rest, Ordering::Relaxed);
                result.map_err(DbError::from)
            }
            Err(_) => Err(DbError::Unavailable("the database did not answer in time".into())),
        };
        let outcome = result.as_ref().map_or_else(DbError::label, |_| "ok");
        metrics::histogram!("db_query_seconds", "role" => self.role, "outcome" => outcome).record(started.elapsed());
        result
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        if let (false, Some(object)) = (*self.at_rest.get_mut(), self.object.take()) {
            metrics::counter!("db_conns_discarded_total").increment(1);
            drop(Object::take(object));
        }
    }
}

/// For statements that change nothing.
pub struct ReadConn(Conn);

impl ReadConn {
    pub(super) fn new(role: &'static str, object: Object) -> Self {
        Self(Conn { role, object: Some(object), at_rest: AtomicBool::new(true) })
    }

    /// All rows of a statement.
    ///
    /// # Errors
    /// As the server says, or `Unavailable`.
    pub async fn query(&self, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, DbError> {
        self.0.query(sql, params).await
    }
}

/// For statements that change something, on the primary.
pub struct WriteConn(Conn);

impl WriteConn {
    pub(super) fn new(object: Object) -> Self {
        Self(Conn { role: "primary", object: Some(object), at_rest: AtomicBool::new(true) })
    }

    /// All rows of a statement, which may change data.
    ///
    /// # Errors
    /// As the server says, or `Unavailable`: then the outcome is unknown.
    pub async fn query(&self, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, DbError> {
        self.0.query(sql, params).await
    }

    /// Opens a transaction. Dropping the connection before `commit` undoes it.
    ///
    /// # Errors
    /// As for `query`.
    pub async fn begin(&self) -> Result<(), DbError> {
        self.0.within_deadline(self.0.object().batch_execute("begin")).await?;
        self.0.at_rest.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Commits what was done since `begin`.
    ///
    /// # Errors
    /// As for `query`.
    pub async fn commit(self) -> Result<(), DbError> {
        self.0.within_deadline(self.0.object().batch_execute("commit")).await?;
        self.0.at_rest.store(true, Ordering::Relaxed);
        Ok(())
    }
}
