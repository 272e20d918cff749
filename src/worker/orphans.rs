//! Removes orphans: containers and networks of this cluster on this host that no live row refers to.
//!
//! A container is an orphan when its instance has no live row at all, on whichever host, and when its label names this
//! host (or none: an older release made it). Where there is a live row of another host, the engine has workers under
//! two host names, or the host was renamed, or the instance was placed anew. Such a container is never removed; an
//! error in the log and the gauge of an alert report it. A container whose label names another host is left to that
//! host.
//!
//! An orphan is removed after `APP_ORPHAN_GRACE_MS`, counted from the first round that missed its row: after a failover
//! Postgres may have lost a commit that is about to be repeated, and a restored database misses old rows too.
//! Containers of another cluster are never touched, because the backends list only this cluster's.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use super::provision_worker::ProvisionWorker;
use crate::{
    backend::{BackendError, Compute, Container, Network, Released},
    core::{
        db::DbError,
        id::{HostId, InstanceId, NetworkId},
        instances::store::{self, LiveInstance},
    },
};

/// The longest pause between two rounds; a grace period that is shorter makes it shorter.
const ROUND_INTERVAL: Duration = Duration::from_secs(60);

/// The findings of earlier rounds.
#[derive(Default)]
struct Findings {
    orphans: FirstFound<InstanceId>,
    /// Networks that no instance of this host uses.
    unused_networks: FirstFound<NetworkId>,
    /// Containers of other hosts that have been reported in the log.
    reported: HashSet<InstanceId>,
}

/// Remembers when each item was found first, among items that every round since has found.
struct FirstFound<T>(HashMap<T, Instant>);

impl<T> Default for FirstFound<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Copy + Eq + Hash> FirstFound<T> {
    /// Records what this round found. Returns the items that have been found for at least `grace`.
    fn record(&mut self, found: &HashSet<T>, grace: Duration) -> Vec<T> {
        self.0.retain(|item, _| found.contains(item));
        let mut first_found = |item: &T| *self.0.entry(*item).or_insert_with(Instant::now);
        found.iter().copied().filter(|item| first_found(item).elapsed() >= grace).collect()
    }

    /// Restarts the grace period of an item.
    fn restart(&mut self, item: T) {
        self.0.remove(&item);
    }
}

/// Collects orphans until it is dropped.
pub(super) async fn run(worker: &Arc<ProvisionWorker>) {
    let interval = ROUND_INTERVAL.min(worker.config.orphan_grace.max(Duration::from_millis(500)));
    let mut tick = tokio::time::interval(interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut findings = Findings::default();
    loop {
        tick.tick().await;
        if let Err(error) = collect_orphans(worker, &mut findings).await {
            tracing::warn!(%error, "could not collect orphans; the next round tries again");
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum CollectError {
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Backend(#[from] BackendError),
}

async fn collect_orphans(worker: &ProvisionWorker, findings: &mut Findings) -> Result<(), CollectError> {
    let (host, grace) = (worker.identity.host, worker.config.orphan_grace);
    // Containers are listed before rows are read: one that is created in between has a row, and is not in the list.
    let containers = worker.compute.list().await?;
    let networks = worker.network.networks().await?;
    let rows = store::placed_on(&worker.db, host).await?;
    let placed_here: HashSet<InstanceId> = rows.iter().map(|row| row.id).collect();
    let used_networks: HashSet<NetworkId> = rows.iter().map(|row| row.network).collect();

    let unplaced: Vec<&Container> =
        containers.iter().filter(|container| !placed_here.contains(&container.instance)).collect();
    let live = live_instances(worker, &unplaced).await?;
    report_foreign(host, &unplaced, &live, &mut findings.reported);
    let is_orphan = |container: &&&Container| container.belongs_to(host) && !live.contains_key(&container.instance);
    let orphans: HashSet<InstanceId> = unplaced.iter().filter(is_orphan).map(|container| container.instance).collect();
    for orphan in findings.orphans.record(&orphans, grace) {
        tracing::warn!(instance = %orphan, "removing an orphaned container");
        match worker.compute.remove(orphan).await {
            Ok(()) => metrics::counter!("host_orphans_removed_total").increment(1),
            Err(error) => {
                tracing::warn!(%error, instance = %orphan, "could not remove an orphan; the next round tries again");
            }
        }
    }

    let unused: HashSet<NetworkId> = networks.into_iter().filter(|network| !used_networks.contains(network)).collect();
    // The grace period holds for networks too: another worker of this engine may be about to create a container in it.
    for network in findings.unused_networks.record(&unused, grace) {
        match worker.network.release_network(network).await {
            Ok(Released::InUse) => findings.unused_networks.restart(network),
            Ok(Released::Gone | Released::Stuck(_)) => {}
            Err(error) => {
                tracing::warn!(%error, %network, "could not remove an unused network; the next round tries again");
            }
        }
    }
    Ok(())
}

/// Returns those of the containers' instances that have a live row, on whichever host.
async fn live_instances(
    worker: &ProvisionWorker,
    containers: &[&Container],
) -> Result<HashMap<InstanceId, LiveInstance>, DbError> {
    if containers.is_empty() {
        return Ok(HashMap::new());
    }
    let ids = containers.iter().map(|container| container.instance).collect();
    let live = store::live_among(&worker.db, ids).await?;
    Ok(live.into_iter().map(|instance| (instance.id, instance)).collect())
}

/// Reports containers that belong to another host: each once in the log, and their number in the gauge of an alert.
fn report_foreign(
    host: HostId,
    unplaced: &[&Container],
    live: &HashMap<InstanceId, LiveInstance>,
    reported: &mut HashSet<InstanceId>,
) {
    let placed_on = |container: &Container| live.get(&container.instance).and_then(|instance| instance.host.as_ref());
    // A live row of this host was placed here after this round had listed the containers.
    let is_placed_elsewhere = |container: &Container| {
        live.contains_key(&container.instance) && placed_on(container).is_none_or(|(id, _)| *id != host)
    };
    let foreign: Vec<_> =
        unplaced.iter().filter(|container| !container.belongs_to(host) || is_placed_elsewhere(container)).collect();
    #[allow(clippy::cast_precision_loss, reason = "a host has fewer than 2^52 containers")]
    metrics::gauge!("host_foreign_containers").set(foreign.len() as f64);
    for container in foreign.iter().filter(|container| !reported.contains(&container.instance)) {
        let (placed_on, name) = placed_on(container).map_or((None, None), |(id, name)| (Some(id), Some(name)));
        tracing::error!(
            instance = %container.instance,
            container = container.container_id,
            created_by_host = ?container.host,
            placed_on_host = ?placed_on,
            placed_on_name = ?name,
            this_host = %host,
            "this engine has a container that belongs to another host; it is left alone: has this host been renamed, \
             or does another worker use this engine?"
        );
    }
    *reported = foreign.into_iter().map(|container| container.instance).collect();
}
