//! `DualDb`: the primary and its read replica. Writes go to the primary; a read states how fresh its data must be.
//!
//! ```text
//! write() ───────────────────────────────► primary
//! read(Consistency::Primary, op) ────────► primary
//! read(Consistency::Any, op) ──► replica ─ failed, or no answer in 250 ms ─► primary, replica skipped for 1 s
//! ```
//!
//! The caller passes a closure to `read`, because it may run twice: on the replica and then on the primary. Where no
//! replica is configured, every read goes to the primary. After a pause, one read tries the replica again.
//!
//! Guarantees under failure:
//! * Every statement has a time-out here as well as in the server, so that a server that hangs costs a caller 2.5 s.
//! * A connection whose statement was abandoned is closed, so that its late answer reaches no other caller (`conn`).
//! * A server that takes no writes is not used as the primary: its connections are closed and its answers dropped
//!   (`pool`).
//! * A write that may have been executed is never repeated here; `Unavailable` leaves that decision to the caller.
//!
//! Errors are sorted by what a caller can do about them (`error`), and rows are decoded into typed records (`row`).

mod conn;
mod connect;
mod error;
pub mod migrate;
mod pool;
mod row;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

pub use conn::{Param, ReadConn, Row, WriteConn};
pub use error::DbError;
pub use row::{column, decode_each, decode_one, decode_or_skip, seconds};

use self::connect::Role;
use crate::config::database::DatabaseConfig;

/// How fresh the data of a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// The replica's data, which may be somewhat old, are good enough.
    Any,
    /// The read sees every commit before it.
    Primary,
}

/// After a failure the replica is skipped for this long, so that its time-out is not added to every read.
const REPLICA_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// A read that the replica has not answered by then goes to the primary.
const REPLICA_TIMEOUT: Duration = Duration::from_millis(250);
/// A server that has not answered a health check by then counts as unavailable.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);

/// The primary and, where one is configured, a read replica. Cheap to clone.
#[derive(Clone)]
pub struct DualDb {
    inner: Arc<Inner>,
}

struct Inner {
    primary: pool::Pool,
    replica: Option<pool::Pool>,
    started: Instant,
    /// Milliseconds after `started` until which the replica is skipped; 0: its last read succeeded.
    replica_paused_until: AtomicU64,
}

/// The result of a health check.
#[derive(Clone, Copy, Debug)]
pub struct DbHealth {
    /// The primary answers and takes writes.
    pub primary: bool,
    /// The replica answers; `None`: none is configured.
    pub replica: Option<bool>,
}

impl DualDb {
    /// Makes the pools; connects to nothing yet.
    ///
    /// # Errors
    /// `Unavailable` when a pool cannot be built (the TLS set-up fails, say).
    pub fn new(config: &DatabaseConfig) -> Result<Self, DbError> {
        let primary = pool::Pool::new(Role::Primary, &config.primary, config.max_conns)?;
        let replica =
            config.replica.as_ref().map(|url| pool::Pool::new(Role::Replica, url, config.max_conns)).transpose()?;
        let inner = Inner { primary, replica, started: Instant::now(), replica_paused_until: AtomicU64::new(0) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Returns whether a read replica is configured.
    pub fn has_replica(&self) -> bool {
        self.inner.replica.is_some()
    }

    /// Takes a connection to the primary, for statements that change data.
    ///
    /// # Errors
    /// `Unavailable` when there is none in time, `ReadOnly` when the server takes no writes.
    pub async fn write(&self) -> Result<WriteConn, DbError> {
        WriteConn::open(&self.inner.primary).await
    }

    /// Runs `op` on a server that `consistency` allows. `op` may run twice: on the replica, then on the primary.
    ///
    /// # Errors
    /// Those of `op` on the primary, and those of `write` where there is no connection. An `op` that finds that a
    /// standby answered returns `ReadOnly`, which closes all connections to that server.
    pub async fn read<T, F>(&self, consistency: Consistency, op: impl Fn(ReadConn) -> F) -> Result<T, DbError>
    where
        F: Future<Output = Result<T, DbError>>,
    {
        if consistency == Consistency::Any
            && let Some(replica) = self.replica()
        {
            let attempt = async { op(ReadConn::open(replica).await?).await };
            let late = || Err(DbError::Unavailable("the replica did not answer in time".into()));
            match tokio::time::timeout(REPLICA_TIMEOUT, attempt).await.unwrap_or_else(|_| late()) {
                Ok(value) => {
                    self.inner.replica_paused_until.store(0, Ordering::Relaxed);
                    count_read(consistency, Role::Replica);
                    return Ok(value);
                }
                Err(error) if error.is_about_the_server() => {
                    let until = self.inner.started.elapsed() + REPLICA_RETRY_INTERVAL;
                    self.inner.replica_paused_until.store(millis(until), Ordering::Relaxed);
                    metrics::counter!("db_fallback_total", "cause" => error.label()).increment(1);
                    tracing::warn!(%error, "replica unavailable, reading from primary");
                }
                Err(error) => return Err(error),
            }
        }
        count_read(consistency, Role::Primary);
        let primary = &self.inner.primary;
        primary.close_if_read_only(op(ReadConn::open(primary).await?).await)
    }

    /// Returns the replica's pool, unless there is none or reads should skip it.
    fn replica(&self) -> Option<&pool::Pool> {
        let replica = self.inner.replica.as_ref()?;
        let paused_until = self.inner.replica_paused_until.load(Ordering::Relaxed);
        if paused_until == 0 {
            return Some(replica);
        }
        // After each interval exactly one read, the one that wins this exchange, tries the replica again.
        let now = millis(self.inner.started.elapsed());
        let next = now + millis(REPLICA_RETRY_INTERVAL);
        let wins_retry = || {
            let paused = &self.inner.replica_paused_until;
            paused.compare_exchange(paused_until, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        (now >= paused_until && wins_retry()).then_some(replica)
    }

    /// Checks both servers with a statement each.
    pub async fn health(&self) -> DbHealth {
        let replica = async {
            match &self.inner.replica {
                Some(pool) => Some(is_healthy(pool).await),
                None => None,
            }
        };
        let (primary, replica) = tokio::join!(is_healthy(&self.inner.primary), replica);
        DbHealth { primary, replica }
    }

    /// Sets the gauges of both pools.
    pub fn report(&self) {
        for pool in [Some(&self.inner.primary), self.inner.replica.as_ref()].into_iter().flatten() {
            pool.report();
        }
        if self.inner.replica.is_some() {
            let paused = self.inner.replica_paused_until.load(Ordering::Relaxed) != 0;
            metrics::gauge!("db_replica_paused").set(f64::from(u8::from(paused)));
        }
    }
}

/// Returns whether the server answers, and takes writes if it is the primary. Uses a `ReadConn`, so that a connection
/// whose answer is late is not reused.
async fn is_healthy(pool: &pool::Pool) -> bool {
    let probe = async {
        let rows = ReadConn::open(pool).await?.query("show transaction_read_only", &[]).await?;
        let is_read_only =
            rows.first().is_none_or(|row| column::<&str>(row, "transaction_read_only").ok() != Some("off"));
        if is_read_only && pool.role() == Role::Primary { Err(DbError::ReadOnly) } else { Ok(()) }
    };
    let answer = tokio::time::timeout(HEALTH_TIMEOUT, probe).await;
    answer.is_ok_and(|result| pool.close_if_read_only(result).is_ok())
}

fn count_read(consistency: Consistency, served_by: Role) {
    let consistency = match consistency {
        Consistency::Any => "any",
        Consistency::Primary => "primary",
    };
    metrics::counter!("db_read_routed_total", "consistency" => consistency, "served_by" => served_by.as_str())
        .increment(1);
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
