//! Removing what nobody owns: containers and networks of our cluster on this host without a live row placed here.
//!
//! Never at once: after a failover Postgres may have lost a commit that is being repeated. Never another cluster's:
//! backends list only ours.

use std::{collections::HashSet, sync::Arc, time::Duration};

use time::OffsetDateTime;

use super::Context;
use crate::{
    backend::{BackendError, Compute, Fabric},
    core::{
        db::DbError,
        id::{InstanceId, NetworkId},
        instances::store,
    },
};

const PERIOD: Duration = Duration::from_secs(60);

/// Sweeps for ever.
pub(super) async fn run(context: &Arc<Context>) {
    let period = PERIOD.min(context.config.orphan_grace.max(Duration::from_millis(500)));
    let mut tick = tokio::time::interval(period);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = sweep(context).await {
            tracing::warn!(%error, "could not sweep; the next round will");
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Backend(#[from] BackendError),
}

async fn sweep(context: &Context) -> Result<(), SweepError> {
    let host = context.me.host;
    // First the containers, then the rows: what is created in between has a row, and is not in the list.
    let containers = context.compute.list().await?;
    let networks = context.fabric.networks().await?;
    let rows = store::expected_on(&context.db, host, None).await?;
    let owned: HashSet<InstanceId> = rows.iter().map(|row| row.id).collect();
    let used: HashSet<NetworkId> = rows.iter().map(|row| row.network).collect();
    for orphan in containers.iter().filter(|container| !owned.contains(&container.instance)) {
        let age = OffsetDateTime::now_utc() - orphan.created_at;
        if age < context.config.orphan_grace {
            continue;
        }
        tracing::warn!(instance = %orphan.instance, container = orphan.container_id, "removing a container without an owner");
        metrics::counter!("host_orphans_removed_total").increment(1);
        context.compute.remove(orphan.instance).await?;
    }
    for network in networks.into_iter().filter(|network| !used.contains(network)) {
        context.fabric.release_network(network).await?;
    }
    Ok(())
}
