//! The schema: migrations compiled into the binary and applied under one advisory lock.
//!
//! Any number of processes may migrate at once: the one that gets the lock applies what is pending, each file in a
//! transaction of its own, and the others wait for the lock and find nothing to do. `migrations/README.md` has the
//! rules for new files.

use std::time::{Duration, Instant};

use refinery::Runner;
use thiserror::Error;
use tokio_postgres::{Client, NoTls};

use super::{
    DbError,
    connect::{self, Role},
};
use crate::config::database::PostgresUrl;

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// The advisory lock of all migrating processes; any fixed number would do ("app" in ASCII).
const ADVISORY_LOCK: i64 = 0x0061_7070;

/// How long migrations wait for a lock on a table: waiting longer would block all later statements on the table too.
const LOCK_TIMEOUT_SQL: &str = "set lock_timeout = '5s'";
/// How long after a failed attempt the next connection is tried.
const CONNECT_INTERVAL: Duration = Duration::from_millis(500);
/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the schema could not be migrated.
#[derive(Debug, Error)]
pub enum MigrateError {
    /// The server did not answer within the wait; with the last reason.
    #[error(
        "DATABASE_URL: the database did not answer within {secs} s: {1}; start it, or correct the variable",
        secs = .0.as_secs()
    )]
    Deadline(Duration, String),
    /// The server answered, but took no writes within the wait.
    #[error(
        "DATABASE_URL: the server took no writes within {secs} s: it is a standby, or read-only; promote it, or \
         correct the variable",
        secs = .0.as_secs()
    )]
    ReadOnly(Duration),
    /// A migration failed and was rolled back, or an applied file was edited.
    #[error("migration failed: {0}")]
    Migration(#[from] refinery::Error),
    /// A statement around the migrations failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Opens a connection to migrate with, retrying for at most `wait` until the server takes writes.
///
/// # Errors
/// `ReadOnly` when the server takes no writes; `Deadline` with the last reason when it does not answer.
pub async fn connect(url: &PostgresUrl, wait: Duration) -> Result<Client, MigrateError> {
    let started = Instant::now();
    loop {
        let error = match tokio::time::timeout(CONNECT_TIMEOUT, connect_once(url)).await {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(error)) => error,
            Err(_) => DbError::Unavailable("no answer within 5 s".into()),
        };
        if started.elapsed() >= wait {
            return Err(match error {
                DbError::ReadOnly => MigrateError::ReadOnly(wait),
                other => MigrateError::Deadline(wait, other.to_string()),
            });
        }
        tracing::info!(%error, "waiting for the database");
        tokio::time::sleep(CONNECT_INTERVAL).await;
    }
}

async fn connect_once(url: &PostgresUrl) -> Result<Client, DbError> {
    let mut config = connect::config(url, Role::Primary, "app-migrate", "");
    config.connect_timeout(Duration::from_secs(3));
    let reason = |error| DbError::of_connecting(&error);
    if let Some(tls) = connect::tls(&config)? {
        let (client, connection) = config.connect(tls).await.map_err(reason)?;
        tokio::spawn(connection);
        Ok(client)
    } else {
        let (client, connection) = config.connect(NoTls).await.map_err(reason)?;
        tokio::spawn(connection);
        Ok(client)
    }
}

/// Returns the migrations of this binary that the database lacks, as `V1__name`.
///
/// # Errors
/// `Db` or `Migration` when the applied ones cannot be read.
pub async fn pending(client: &mut Client) -> Result<Vec<String>, MigrateError> {
    let runner = embedded::migrations::runner();
    let table = "select to_regclass('refinery_schema_history') is not null";
    let exists: bool = client.query_one(table, &[]).await.map_err(DbError::from)?.get(0);
    let applied = if exists { runner.get_applied_migrations_async(client).await? } else { Vec::new() };
    let is_new = |m: &&refinery::Migration| !applied.iter().any(|a| a.version() == m.version());
    Ok(runner.get_migrations().iter().filter(is_new).map(ToString::to_string).collect())
}

/// Applies the pending migrations and returns them. Concurrent calls wait for each other.
///
/// # Errors
/// `Migration` when one fails (it is rolled back, and those before it stay) or when an applied file was edited; `Db`
/// when the lock could not be taken or released.
pub async fn apply(client: &mut Client) -> Result<Vec<String>, MigrateError> {
    client.query("select pg_advisory_lock($1)", &[&ADVISORY_LOCK]).await.map_err(DbError::from)?;
    // Set after the advisory lock is taken, since it would also limit the wait for that lock.
    client.batch_execute(LOCK_TIMEOUT_SQL).await.map_err(DbError::from)?;
    let report = runner().run_async(client).await?;
    client.query("select pg_advisory_unlock($1)", &[&ADVISORY_LOCK]).await.map_err(DbError::from)?;
    Ok(report.applied_migrations().iter().map(ToString::to_string).collect())
}

fn runner() -> Runner {
    embedded::migrations::runner().set_abort_divergent(true)
}
