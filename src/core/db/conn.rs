//! Connections for reads and for writes: a `ReadConn` can only query, a `WriteConn` can also open a transaction.
//!
//! A statement whose future is dropped or timed out keeps running in the server and would delay the next user of its
//! connection. So a connection with such a statement, or with an open transaction, is closed when it is dropped instead
//! of going back to the pool.
//!
//! Statements are prepared once per connection. When a prepared statement is out of date (a column's type changed, a
//! pooler between us and the server reset the session), the server refuses it before it executes anything. Then the
//! connection is closed, all connections of the pool prepare their statements anew, and the statement runs once more, a
//! write too. In a transaction the server has rolled back the earlier statements, so the caller gets `StaleStatement`
//! and begins again.

use std::time::{Duration, Instant};

use deadpool_postgres::Object;
use tokio::sync::Mutex;
pub use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::{
    DbError,
    connect::Role,
    pool::{self, Pool},
};

/// A statement's parameter.
pub type Param<'a> = &'a (dyn ToSql + Sync);

/// The server cancels a statement after 2 s (`statement_timeout`); this time-out covers a server that hangs.
const STATEMENT_TIMEOUT: Duration = Duration::from_millis(2500);

struct Conn {
    pool: Pool,
    /// Locked while a statement is under way: the connection may be replaced by another one at its end.
    checkout: Mutex<Checkout>,
}

/// A connection that was taken from the pool.
struct Checkout {
    role: Role,
    /// `None` when it was closed and the pool had no other one.
    object: Option<Object>,
    in_transaction: bool,
    /// Why it is closed when dropped; `None`: it is idle, and goes back to the pool.
    discard_cause: Option<&'static str>,
}

impl Conn {
    async fn open(pool: &Pool) -> Result<Self, DbError> {
        let object = Some(pool.get().await?);
        let checkout = Checkout { role: pool.role(), object, in_transaction: false, discard_cause: None };
        Ok(Self { pool: pool.clone(), checkout: Mutex::new(checkout) })
    }

    async fn query(&self, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, DbError> {
        let mut checkout = self.checkout.lock().await;
        let error = match checkout.query(sql, params).await {
            Err(error @ DbError::StaleStatement { .. }) => error,
            result => return result,
        };
        // The other connections were open when this one was, so their prepared statements are as old.
        self.pool.forget_statements();
        checkout.discard_cause = Some("stale_statement");
        if checkout.in_transaction {
            return Err(error);
        }
        tracing::info!(%error, "stale prepared statement; closing the connection and running the statement once more");
        checkout.close();
        checkout.object = Some(self.pool.get().await?);
        checkout.discard_cause = None;
        checkout.query(sql, params).await
    }
}

impl Checkout {
    async fn query(&mut self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, DbError> {
        let Self { role, object, discard_cause, .. } = self;
        let object = object.as_ref().ok_or_else(closed)?;
        let op = async {
            let statement = object.prepare_cached(sql).await?;
            object.query(&statement, params).await
        };
        with_timeout(*role, discard_cause, op).await
    }

    async fn execute(&mut self, sql: &str) -> Result<(), DbError> {
        let Self { role, object, discard_cause, .. } = self;
        let object = object.as_ref().ok_or_else(closed)?;
        with_timeout(*role, discard_cause, object.batch_execute(sql)).await
    }

    /// Closes the connection if there is a cause to discard it.
    fn close(&mut self) {
        let Some(cause) = self.discard_cause else { return };
        if let Some(object) = self.object.take() {
            pool::count_discarded(cause, 1);
            drop(Object::take(object));
        }
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        self.close();
    }
}

fn closed() -> DbError {
    DbError::Unavailable("the connection is closed".into())
}

async fn with_timeout<T>(
    role: Role,
    discard_cause: &mut Option<&'static str>,
    op: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, DbError> {
    // Set until the statement has ended, since this future may be dropped.
    let before = discard_cause.replace("abandoned");
    let started = Instant::now();
    let result = match tokio::time::timeout(STATEMENT_TIMEOUT, op).await {
        Ok(result) => {
            *discard_cause = before;
            result.map_err(DbError::from)
        }
        Err(_) => Err(DbError::Unavailable("the database did not answer in time".into())),
    };
    let outcome = result.as_ref().map_or_else(DbError::label, |_| "ok");
    metrics::histogram!("db_query_seconds", "role" => role.as_str(), "outcome" => outcome).record(started.elapsed());
    result
}

/// A connection for statements that change nothing.
pub struct ReadConn(Conn);

impl ReadConn {
    pub(super) async fn open(pool: &Pool) -> Result<Self, DbError> {
        Conn::open(pool).await.map(Self)
    }

    /// Runs a statement and returns all its rows.
    ///
    /// # Errors
    /// `Unavailable` when there is no answer in time; otherwise by the server's SQLSTATE.
    pub async fn query(&self, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, DbError> {
        self.0.query(sql, params).await
    }
}

/// A connection to the primary, for statements that change data.
pub struct WriteConn(Conn);

impl WriteConn {
    pub(super) async fn open(pool: &Pool) -> Result<Self, DbError> {
        Conn::open(pool).await.map(Self)
    }

    /// Runs a statement, which may change data, and returns all its rows.
    ///
    /// # Errors
    /// `Unavailable` when there is no answer in time, in which case the outcome is unknown; otherwise by the server's
    /// SQLSTATE.
    pub async fn query(&self, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, DbError> {
        let result = self.0.query(sql, params).await;
        self.0.pool.close_if_read_only(result)
    }

    /// Opens a transaction. Dropping the connection before `commit` rolls it back.
    ///
    /// # Errors
    /// As for `query`.
    pub async fn begin(&self) -> Result<(), DbError> {
        let mut checkout = self.0.checkout.lock().await;
        checkout.execute("begin").await?;
        checkout.in_transaction = true;
        checkout.discard_cause = Some("abandoned");
        Ok(())
    }

    /// Commits the transaction.
    ///
    /// # Errors
    /// As for `query`.
    pub async fn commit(self) -> Result<(), DbError> {
        let mut checkout = self.0.checkout.lock().await;
        checkout.execute("commit").await?;
        checkout.in_transaction = false;
        checkout.discard_cause = None;
        Ok(())
    }
}
