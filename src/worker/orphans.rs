//! Removing orphans: containers and networks of our cluster on this host that no live row accounts for.
//!
//! A container is an orphan only when its instance has no live row at all, on whichever host, and when it carries this host
//! (or none: an older release made it). A live row placed on another host means that the engine has workers under two host
//! names, that the host was renamed, or that the instance was placed anew: such a container is never removed, and raises an
//! alarm instead. One that carries another host is that host's to remove.
//!
//! Never at once: after a failover Postgres may have lost a commit that is being repeated. Never another cluster's:
//! backends list only ours.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use super::ProvisionWorker;
use crate::{
    backend::{BackendError, Compute, Network, Observed, Released},
    core::{
        db::DbError,
        id::{HostId, InstanceId, NetworkId},
        instances::store::{self, LiveInstance},
    },
};

const PERIOD: Duration = Duration::from_secs(60);

/// What earlier rounds have found.
#[derive(Default)]
struct Findings {
    orphans: FoundSince<InstanceId>,
    /// Networks that no instance here uses.
    unused: FoundSince<NetworkId>,
    /// Containers that belong to another host, and are in the log already.
    foreign: HashSet<InstanceId>,
}

/// Keeps since when each thing has been found in all rounds.
struct FoundSince<T>(HashMap<T, Instant>);

impl<T> Default for FoundSince<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Copy + Eq + Hash> FoundSince<T> {
    /// Takes what this round found, and returns what has been found for at least `grace`.
    fn older_than(&mut self, grace: Duration, found: &HashSet<T>) -> Vec<T> {
        self.0.retain(|known, _| found.contains(known));
        let since = |one: &T| *self.0.entry(*one).or_insert_with(Instant::now);
        found.iter().map(since).zip(found).filter(|(since, _)| since.elapsed() >= grace).map(|(_, one)| *one).collect()
    }

    /// Restarts the time of one.
    fn forget(&mut self, one: T) {
        self.0.remove(&one);
    }
}

/// Sweeps for ever.
pub(super) async fn run(worker: &Arc<ProvisionWorker>) {
    let period = PERIOD.min(worker.config.orphan_grace.max(Duration::from_millis(500)));
    let mut tick = tokio::time::interval(period);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut findings = Findings::default();
    loop {
        tick.tick().await;
        if let Err(error) = sweep(worker, &mut findings).await {
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

async fn sweep(worker: &ProvisionWorker, findings: &mut Findings) -> Result<(), SweepError> {
    let (host, grace) = (worker.me.host, worker.config.orphan_grace);
    // First the containers, then the rows: what is created in between has a row, and is not in the list.
    let containers = worker.compute.list().await?;
    let networks = worker.network_backend.networks().await?;
    let rows = store::placed_on(&worker.db, host).await?;
    let owned: HashSet<InstanceId> = rows.iter().map(|row| row.id).collect();
    let used: HashSet<NetworkId> = rows.iter().map(|row| row.network).collect();

    let unowned: Vec<&Observed> = containers.iter().filter(|one| !owned.contains(&one.instance)).collect();
    let live = live(worker, &unowned).await?;
    alarm(host, &unowned, &live, &mut findings.foreign);
    let orphans = unowned.iter().filter(|one| one.is_of(host) && !live.contains_key(&one.instance));
    let orphans: HashSet<InstanceId> = orphans.map(|one| one.instance).collect();
    // From when its row was missed, not from its creation: a restored database misses old ones too.
    for orphan in findings.orphans.older_than(grace, &orphans) {
        tracing::warn!(instance = %orphan, "removing a container without an owner");
        match worker.compute.remove(orphan).await {
            Ok(()) => metrics::counter!("host_orphans_removed_total").increment(1),
            Err(error) => tracing::warn!(%error, instance = %orphan, "could not remove it; the next round will"),
        }
    }

    let unused: HashSet<NetworkId> = networks.into_iter().filter(|network| !used.contains(network)).collect();
    // Not at once either: another worker of this engine may just be about to create a container in it.
    for network in findings.unused.older_than(grace, &unused) {
        match worker.network_backend.release_network(network).await {
            Ok(Released::Used) => findings.unused.forget(network),
            Ok(Released::Gone | Released::Stuck(_)) => {}
            Err(error) => {
                tracing::warn!(%error, %network, "could not remove a network without a user; the next round will");
            }
        }
    }
    Ok(())
}

/// Returns those of the containers' instances that have a live row, on whichever host.
async fn live(
    worker: &ProvisionWorker,
    containers: &[&Observed],
) -> Result<HashMap<InstanceId, LiveInstance>, DbError> {
    if containers.is_empty() {
        return Ok(HashMap::new());
    }
    let ids = containers.iter().map(|container| container.instance).collect();
    let live = store::live_among(&worker.db, ids).await?;
    Ok(live.into_iter().map(|instance| (instance.id, instance)).collect())
}

/// Reports containers that belong to another host: each once in the log, and their number in the gauge of an alert.
fn alarm(
    host: HostId,
    unowned: &[&Observed],
    live: &HashMap<InstanceId, LiveInstance>,
    known: &mut HashSet<InstanceId>,
) {
    let placed_on = |one: &Observed| live.get(&one.instance).and_then(|instance| instance.host.as_ref());
    // A live row that is placed here was placed after this round had read what is.
    let is_elsewhere =
        |one: &Observed| live.contains_key(&one.instance) && placed_on(one).is_none_or(|(id, _)| *id != host);
    let foreign: Vec<_> = unowned.iter().filter(|one| !one.is_of(host) || is_elsewhere(one)).collect();
    #[allow(clippy::cast_precision_loss, reason = "a host has fewer than 2^52 containers")]
    metrics::gauge!("host_foreign_containers").set(foreign.len() as f64);
    for container in foreign.iter().filter(|container| !known.contains(&container.instance)) {
        let (placed_on, name) = placed_on(container).map_or((None, None), |(id, name)| (Some(id), Some(name)));
        tracing::error!(
            instance = %container.instance,
            container = container.container_id,
            created_by_host = ?container.host,
            placed_on_host = ?placed_on,
            placed_on_name = ?name,
            this_host = %host,
            "this engine has a container that belongs to another host; it is left alone: has this host been renamed, or does \
             another worker use this engine?"
        );
    }
    *known = foreign.into_iter().map(|container| container.instance).collect();
}
