//! Connects to Postgres: waits until the primary answers and its schema is complete.
//!
//! In a deployment `app migrate` may still be at work when a process starts, so the schema is checked once a second until
//! `DB_WAIT_SECONDS` are over.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::{
    config::database::DatabaseConfig,
    core::{
        db::{DualDb, migrate},
        hosts,
        id::ClusterId,
    },
};

const MIGRATION_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Connects to the two servers. Returns them with the id of the cluster that the primary's schema belongs to.
///
/// # Errors
/// When the primary does not answer in time, or when migrations are pending at the end of that time.
pub async fn database(config: &DatabaseConfig) -> anyhow::Result<(DualDb, ClusterId)> {
    let started = Instant::now();
    let mut client = migrate::connect(&config.primary, config.wait).await?;
    let pending = loop {
        let pending = migrate::pending(&mut client).await?;
        if pending.is_empty() || started.elapsed() >= config.wait {
            break pending;
        }
        tracing::info!(?pending, "waiting for `app migrate`");
        tokio::time::sleep(MIGRATION_POLL_INTERVAL).await;
    };
    if !pending.is_empty() {
        bail!("DATABASE_URL: the schema lacks {}; run: app migrate", pending.join(", "));
    }
    let db = DualDb::new(config)?;
    let cluster =
        hosts::store::cluster(&db).await?.context("DATABASE_URL: the schema has no cluster; run: app migrate")?;
    Ok((db, cluster))
}
