//! Connections by intent: a `ReadConn` can only query, a `WriteConn` can also open a transaction.
//!
//! A statement dropped or timed out in flight keeps running in the server and would delay the next user of its
//! connection; so a connection that is not at rest when dropped is closed instead of going back to the pool.
//!
//! Statements are prepared once per connection. When the server no longer takes a prepared one (a column's type changed, a
//! pooler in between reset the session), it says so before it executes anything. The connection is closed then, all
//! connections of the pool prepare anew, and the statement runs once more, writes too. In a transaction, of which the server
//! has undone the rest, only the caller can begin again: it gets `StaleStatement`.

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

/// The server gives up after 2 s (`statement_timeout`); a server that hangs cannot, so we do.
const DEADLINE: Duration = Duration::from_millis(2500);

struct Conn {
    pool: Pool,
    /// Locked while a statement is under way: the connection may be replaced by another one at its end.
    lent: Mutex<Lent>,
}

/// A connection out of the pool.
struct Lent {
    role: Role,
    /// `None` when it was closed and no other one could be had.
    object: Option<Object>,
    in_transaction: bool,
    /// Why it is closed in the end; `None`: it is at rest, and goes back to the pool.
    unfit: Option<&'static str>,
}

impl Conn {
    async fn open(pool: &Pool) -> Result<Self, DbError> {
        let object = Some(pool.get().await?);
        let lent = Lent { role: pool.role(), object, in_transaction: false, unfit: None };
        Ok(Self { pool: pool.clone(), lent: Mutex::new(lent) })
    }

    async fn query(&self, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, DbError> {
        let mut lent = self.lent.lock().await;
        let error = match lent.query(sql, params).await {
            Err(error @ DbError::StaleStatement { .. }) => error,
            result => return result,
        };
        // The other connections were open when this one was: what they have prepared is as old.
        self.pool.forget_statements();
        lent.unfit = Some("stale_statement");
        if lent.in_transaction {
            return Err(error);
        }
        tracing::info!(%error, "closing the connection and running the statement once more");
        lent.close();
        lent.object = Some(self.pool.get().await?);
        lent.unfit = None;
        lent.query(sql, params).await
    }
}

impl Lent {
    async fn query(&mut self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, DbError> {
        let Self { role, object, unfit, .. } = self;
        let object = object.as_ref().ok_or_else(closed)?;
        let op = async {
            let statement = object.prepare_cached(sql).await?;
            object.query(&statement, params).await
        };
        within_deadline(*role, unfit, op).await
    }

    async fn execute(&mut self, sql: &str) -> Result<(), DbError> {
        let Self { role, object, unfit, .. } = self;
        let object = object.as_ref().ok_or_else(closed)?;
        within_deadline(*role, unfit, object.batch_execute(sql)).await
    }

    /// Closes the connection if it is unfit.
    fn close(&mut self) {
        let Some(cause) = self.unfit else { return };
        if let Some(object) = self.object.take() {
            pool::count_discarded(cause, 1);
            drop(Object::take(object));
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.close();
    }
}

fn closed() -> DbError {
    DbError::Unavailable("the connection is closed".into())
}

async fn within_deadline<T>(
    role: Role,
    unfit: &mut Option<&'static str>,
    op: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, DbError> {
    // Until it has ended: this future may be dropped.
    let before = unfit.replace("abandoned");
    let started = Instant::now();
    let result = match tokio::time::timeout(DEADLINE, op).await {
        Ok(result) => {
            *unfit = before;
            result.map_err(DbError::from)
        }
        Err(_) => Err(DbError::Unavailable("the database did not answer in time".into())),
    };
    let outcome = result.as_ref().map_or_else(DbError::label, |_| "ok");
    metrics::histogram!("db_query_seconds", "role" => role.as_str(), "outcome" => outcome).record(started.elapsed());
    result
}

/// For statements that change nothing.
pub struct ReadConn(Conn);

impl ReadConn {
    pub(super) async fn open(pool: &Pool) -> Result<Self, DbError> {
        Conn::open(pool).await.map(Self)
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
    pub(super) async fn open(pool: &Pool) -> Result<Self, DbError> {
        Conn::open(pool).await.map(Self)
    }

    /// All rows of a statement, which may change data.
    ///
    /// # Errors
    /// As the server says, or `Unavailable`: then the outcome is unknown.
    pub async fn query(&self, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, DbError> {
        let result = self.0.query(sql, params).await;
        self.0.pool.close_if_read_only(result)
    }

    /// Opens a transaction. Dropping the connection before `commit` undoes it.
    ///
    /// # Errors
    /// As for `query`.
    pub async fn begin(&self) -> Result<(), DbError> {
        let mut lent = self.0.lent.lock().await;
        lent.execute("begin").await?;
        lent.in_transaction = true;
        lent.unfit = Some("abandoned");
        Ok(())
    }

    /// Commits what was done since `begin`.
    ///
    /// # Errors
    /// As for `query`.
    pub async fn commit(self) -> Result<(), DbError> {
        let mut lent = self.0.lent.lock().await;
        lent.execute("commit").await?;
        lent.in_transaction = false;
        lent.unfit = None;
        Ok(())
    }
}
