//! DualDb: Postgres by intent. Writes go to the primary; reads say how fresh they must be.
//!
//! Promises: each statement has a deadline here as well as in the server; a connection whose statement was abandoned
//! is closed, never lent again; a read that fails at the replica is run once more on the primary; a server that takes no
//! writes is not taken for the primary. Refuses: writing through a read connection, and repeating a write that was executed.

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
pub use row::{column, decode_each, log_unreadable};

use self::connect::Role;
use crate::config::database::DatabaseConfig;

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// A replica's view is good enough.
    Any,
    /// Sees everything committed before it began.
    Primary,
}

/// After a failure the replica is left alone for this long, so that its time-outs are not added to every list.
const REPLICA_PAUSE: Duration = Duration::from_secs(1);
/// What the replica has not answered by then is asked of the primary: a replica that hangs costs a list no more.
const REPLICA_DEADLINE: Duration = Duration::from_millis(250);
/// A server that has not answered by then is called away.
const PROBE_DEADLINE: Duration = Duration::from_secs(1);

/// The primary and, where one is configured, a read replica. Cheap to clone.
#[derive(Clone)]
pub struct DualDb {
    inner: Arc<Inner>,
}

struct Inner {
    primary: pool::Pool,
    replica: Option<pool::Pool>,
    started: Instant,
    /// Milliseconds after `started` until which the replica is not asked; 0: it is well.
    replica_paused_until: AtomicU64,
}

/// Whether each server answers.
#[derive(Clone, Copy, Debug)]
pub struct DbHealth {
    /// And takes writes.
    pub primary: bool,
    /// `None`: none is configured.
    pub replica: Option<bool>,
}

impl DualDb {
    /// Makes the pools; connects to nothing yet.
    ///
    /// # Errors
    /// When the URLs cannot be turned into pools (a TLS set-up that fails, say).
    pub fn new(config: &DatabaseConfig) -> Result<Self, DbError> {
        let primary = pool::Pool::new(Role::Primary, &config.primary, config.max_conns)?;
        let replica =
            config.replica.as_ref().map(|url| pool::Pool::new(Role::Replica, url, config.max_conns)).transpose()?;
        let inner = Inner { primary, replica, started: Instant::now(), replica_paused_until: AtomicU64::new(0) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether a read replica is configured.
    pub fn has_replica(&self) -> bool {
        self.inner.replica.is_some()
    }

    /// A connection to the primary, for statements that change something or must see everything.
    ///
    /// # Errors
    /// `Unavailable` when none could be had within the deadline, `ReadOnly` when the server takes no writes.
    pub async fn write(&self) -> Result<WriteConn, DbError> {
        WriteConn::open(&self.inner.primary).await
    }

    /// Runs `op` where `consistency` allows. `op` may run twice: at the replica, then on the primary.
    ///
    /// # Errors
    /// Those of `op` on the primary. `ReadOnly` closes all connections to it: `op` says so of what a standby answered.
    pub async fn read<T, F>(&self, consistency: Consistency, op: impl Fn(ReadConn) -> F) -> Result<T, DbError>
    where
        F: Future<Output = Result<T, DbError>>,
    {
        if consistency == Consistency::Any
            && let Some(replica) = self.replica()
        {
            let attempt = async { op(ReadConn::open(replica).await?).await };
            let late = || Err(DbError::Unavailable("the replica did not answer in time".into()));
            match tokio::time::timeout(REPLICA_DEADLINE, attempt).await.unwrap_or_else(|_| late()) {
                Ok(value) => {
                    self.inner.replica_paused_until.store(0, Ordering::Relaxed);
                    routed(consistency, "replica");
                    return Ok(value);
                }
                Err(error) if error.is_about_the_server() => {
                    let until = self.inner.started.elapsed() + REPLICA_PAUSE;
                    self.inner.replica_paused_until.store(millis(until), Ordering::Relaxed);
                    metrics::counter!("db_fallback_total", "cause" => error.label()).increment(1);
                    tracing::warn!(%error, "the read replica failed; reading from the primary");
                }
                Err(error) => return Err(error),
            }
        }
        routed(consistency, "primary");
        let primary = &self.inner.primary;
        primary.close_if_read_only(op(ReadConn::open(primary).await?).await)
    }

    fn replica(&self) -> Option<&pool::Pool> {
        let replica = self.inner.replica.as_ref()?;
        let paused_until = self.inner.replica_paused_until.load(Ordering::Relaxed);
        if paused_until == 0 {
            return Some(replica);
        }
        // It failed. After each pause one read, and no other, finds out how it is now.
        let (now, pause) = (millis(self.inner.started.elapsed()), millis(REPLICA_PAUSE));
        let is_ours = || {
            let (known, next) = (paused_until, now + pause);
            self.inner.replica_paused_until.compare_exchange(known, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        (now >= paused_until && is_ours()).then_some(replica)
    }

    /// Asks both servers for an answer.
    pub async fn health(&self) -> DbHealth {
        let replica = async {
            match &self.inner.replica {
                Some(pool) => Some(answers(pool).await),
                None => None,
            }
        };
        let (primary, replica) = tokio::join!(answers(&self.inner.primary), replica);
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

/// Whether the server answers now, and takes writes if it is the primary. Asked by a `ReadConn`, which keeps a connection
/// whose answer is still to come from being lent again.
async fn answers(pool: &pool::Pool) -> bool {
    let probe = async {
        let rows = ReadConn::open(pool).await?.query("show transaction_read_only", &[]).await?;
        let is_read_only = rows.first().is_none_or(|row| row.get::<_, &str>(0) != "off");
        if is_read_only && pool.role() == Role::Primary { Err(DbError::ReadOnly) } else { Ok(()) }
    };
    let answer = tokio::time::timeout(PROBE_DEADLINE, probe).await;
    answer.is_ok_and(|result| pool.close_if_read_only(result).is_ok())
}

fn routed(consistency: Consistency, served_by: &'static str) {
    let consistency = match consistency {
        Consistency::Any => "any",
        Consistency::Primary => "primary",
    };
    metrics::counter!("db_read_routed_total", "consistency" => consistency, "served_by" => served_by).increment(1);
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
