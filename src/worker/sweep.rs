//! Removing what nobody owns: containers and networks of our cluster on this host without a live row placed here.
//!
//! Never at once: after a failover Postgres may have lost a commit that is being repeated. Never another cluster's:
//! backends list only ours.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

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

/// Containers that nobody owned at the last look, and since when.
type Orphans = HashMap<InstanceId, Instant>;

/// Sweeps for ever.
pub(super) async fn run(context: &Arc<Context>) {
    let period = PERIOD.min(context.config.orphan_grace.max(Duration::from_millis(500)));
    let mut tick = tokio::time::interval(period);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut orphans = Orphans::new();
    loop {
        tick.tick().await;
        if let Err(error) = sweep(context, &mut orphans).await {
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

async fn sweep(context: &Context, orphans: &mut Orphans) -> Result<(), SweepError> {
    let host = context.me.host;
    // First the containers, then the rows: what is created in between has a row, and is not in the list.
    let containers = context.compute.list().await?;
    let networks = context.fabric.networks().await?;
    let rows = store::expected_on(&context.db, host, None).await?;
    let owned: HashSet<InstanceId> = rows.iter().map(|row| row.id).collect();
    let used: HashSet<NetworkId> = rows.iter().map(|row| row.network).collect();
    let unowned = containers.iter().map(|container| container.instance).filter(|id| !owned.contains(id));
    let unowned: HashSet<InstanceId> = unowned.collect();
    orphans.retain(|id, _| unowned.contains(id));
    for orphan in unowned {
        // From when its row was missed, not from its creation: a restored database misses old ones too.
        let since = *orphans.entry(orphan).or_insert_with(Instant::now);
        if since.elapsed() < context.config.orphan_grace {
            continue;
        }
        tracing::warn!(instance = %orphan, "removing a container without an owner");
        match context.compute.remove(orphan).await {
            Ok(()) => metrics::counter!("host_orphans_removed_total").increment(1),
            Err(error) => tracing::warn!(%error, instance = %orphan, "could not remove it; the next round will"),
        }
    }
    for network in networks.into_iter().filter(|network| !used.contains(network)) {
        if let Err(error) = context.fabric.release_network(network).await {
            tracing::warn!(%error, %network, "could not remove a network without a user; the next round will");
        }
    }
    Ok(())
}
