//! The schema: embedded migrations, applied by whoever comes first while the others wait.

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

/// Any fixed number: all migrating processes take this advisory lock ("app" in ASCII).
const LOCK: i64 = 0x0061_7070;

#[derive(Debug, Error)]
pub enum MigrateError {
    #[error("DATABASE_URL: the database did not answer within {secs} s: {1}; start it, or correct the variable", secs = .0.as_secs())]
    Deadline(Duration, String),
    #[error("DATABASE_URL: the server took no writes within {secs} s: it is a standby, or read-only; promote it, or correct the variable", secs = .0.as_secs())]
    ReadOnly(Duration),
    #[error("migration failed: {0}")]
    Migration(#[from] refinery::Error),
    #[error(transparent)]
    Db(#[from] DbError),
}

/// A connection to migrate with, waiting for a database that takes writes for at most `wait`.
///
/// # Errors
/// `ReadOnly`, or `Deadline` with the last reason.
pub async fn connect(url: &PostgresUrl, wait: Duration) -> Result<Client, MigrateError> {
    let started = Instant::now();
    loop {
        let error = match tokio::time::timeout(Duration::from_secs(5), connect_once(url)).await {
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
        tokio::time::sleep(Duration::from_millis(500)).await;
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

/// The migrations that this binary has and the database has not, as `V1__name`.
///
/// # Errors
/// As the server says.
pub async fn pending(client: &mut Client) -> Result<Vec<String>, MigrateError> {
    let runner = embedded::migrations::runner();
    let table = "select to_regclass('refinery_schema_history') is not null";
    let exists: bool = client.query_one(table, &[]).await.map_err(DbError::from)?.get(0);
    let applied = if exists { runner.get_applied_migrations_async(client).await? } else { Vec::new() };
    let is_new = |m: &&refinery::Migration| !applied.iter().any(|a| a.version() == m.version());
    Ok(runner.get_migrations().iter().filter(is_new).map(ToString::to_string).collect())
}

/// Applies what is pending and answers it. Safe to run many times at once: one works, the others wait and find nothing.
///
/// # Errors
/// `Migration` when one fails (it is undone; those before it stay), or when an applied file was edited.
pub async fn apply(client: &mut Client) -> Result<Vec<String>, MigrateError> {
    client.query("select pg_advisory_lock($1)", &[&LOCK]).await.map_err(DbError::from)?;
    // Only now: it would also cut the wait for our own turn.
    client.batch_execute("set lock_timeout = '5s'").await.map_err(DbError::from)?;
    let report = runner().run_async(client).await?;
    client.query("select pg_advisory_unlock($1)", &[&LOCK]).await.map_err(DbError::from)?;
    Ok(report.applied_migrations().iter().map(ToString::to_string).collect())
}

fn runner() -> Runner {
    embedded::migrations::runner().set_abort_divergent(true)
}
