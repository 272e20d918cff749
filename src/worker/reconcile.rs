//! What containers do by themselves: ends are noticed by the runtime's events, and by comparing all from time to time.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::ProvisionWorker;
use crate::{
    backend::{BackendError, Compute, ContainerState, Network, Observed},
    core::{
        id::InstanceId,
        instances::{
            Status,
            observe::{Observation, RestartDecision, observe, restart_decision},
            store::{self, Expected},
        },
    },
};

/// Watches for ever.
pub(super) async fn run(worker: &Arc<ProvisionWorker>, mut to_look_at: mpsc::UnboundedReceiver<InstanceId>) {
    loop {
        let mut changes = worker.compute.changes();
        let mut recheck = tokio::time::interval(worker.config.recheck);
        loop {
            tokio::select! {
                change = changes.next() => match change {
                    // What a job of ours does to it; once that has ended, it asks for a look.
                    Some(Ok(change)) if worker.leases.holds(change.instance) => {}
                    Some(Ok(change)) => look_at(worker, change.instance).await,
                    Some(Err(error)) => {
                        tracing::warn!(%error, "the runtime's events ended; subscribing again");
                        break;
                    }
                    None => break,
                },
                Some(instance) = to_look_at.recv() => look_at(worker, instance).await,
                // The first tick is at once: whatever happened before the subscription.
                _ = recheck.tick() => look_at_all(worker).await,
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn look_at(worker: &ProvisionWorker, instance: InstanceId) {
    // That it runs is the usual answer, and costs Postgres nothing.
    if let Ok(Some(observed)) = worker.compute.inspect(instance).await
        && observed.state == ContainerState::Running
    {
        return;
    }
    // The row before the container that it is compared with.
    let expected = match store::expected_on(&worker.db, worker.me.host, Some(vec![instance])).await {
        Ok(expected) => expected,
        Err(error) => return tracing::warn!(%error, %instance, "could not compare an instance; the next check will"),
    };
    for expected in expected.into_iter().filter(should_run) {
        match worker.compute.inspect(instance).await {
            Ok(observed) => judge(worker, &expected, observed.as_ref()).await,
            Err(error) => tracing::warn!(%error, %instance, "could not inspect a container; the next check will"),
        }
    }
}

async fn look_at_all(worker: &ProvisionWorker) {
    // First the rows: a container that appears in between belongs to no row that should run yet.
    let expected = match store::expected_on(&worker.db, worker.me.host, None).await {
        Ok(expected) => expected,
        Err(error) => return tracing::warn!(%error, "could not compare the instances; the next check will"),
    };
    let observed: HashMap<InstanceId, Observed> = match worker.compute.list().await {
        Ok(list) => list.into_iter().map(|observed| (observed.instance, observed)).collect(),
        Err(error) => return tracing::warn!(%error, "could not list the containers; the next check will"),
    };
    #[allow(clippy::cast_precision_loss, reason = "a host has fewer than 2^52 containers")]
    metrics::gauge!("host_containers").set(observed.values().filter(|one| one.is_of(worker.me.host)).count() as f64);
    for expected in expected.iter().filter(|expected| should_run(expected)) {
        judge(worker, expected, observed.get(&expected.id)).await;
    }
    for failed in expected.iter().filter(|expected| expected.status == Status::Failed) {
        // One that a job has in hand is that job's.
        if let Some(container) = observed.get(&failed.id).filter(|_| !worker.leases.holds(failed.id)) {
            settle_failed(worker, failed, container).await;
        }
    }
}

/// A worker that died too often, an undo that failed, or a deadline leaves a container though its instance failed. One that
/// never ran holds nothing and goes. One that did is stopped and stays with its data, until it is deleted or started again.
async fn settle_failed(worker: &ProvisionWorker, failed: &Expected, container: &Observed) {
    let settled = match container.state {
        ContainerState::Exited { .. } => return,
        ContainerState::Running => {
            tracing::warn!(instance = %failed.id, "stopping the container of a failed instance");
            // Killed: the checks of all others wait here.
            worker.compute.stop(failed.id, Duration::ZERO).await
        }
        ContainerState::Created => {
            tracing::warn!(instance = %failed.id, "removing a container that never ran, of a failed instance");
            remove_unused(worker, failed, container).await
        }
    };
    if let Err(error) = settled {
        tracing::warn!(%error, instance = %failed.id, "could not settle it; the next check will try again");
    }
}

async fn remove_unused(worker: &ProvisionWorker, failed: &Expected, container: &Observed) -> Result<(), BackendError> {
    worker.network_backend.unpublish(failed.id).await?;
    worker.compute.discard(container).await?;
    worker.network_backend.release_network(failed.network).await.map(drop)
}

fn should_run(expected: &Expected) -> bool {
    matches!(expected.status, Status::Running | Status::Unknown)
}

async fn judge(worker: &ProvisionWorker, expected: &Expected, observed: Option<&Observed>) {
    let seen = match observed.map(|observed| observed.state) {
        Some(ContainerState::Running) => Observation::Running,
        Some(ContainerState::Exited { exit_code, oom_killed }) => Observation::Ended { exit_code, oom_killed },
        // Created but not running, though the job had started it: somebody replaced it.
        Some(ContainerState::Created) | None => Observation::Gone,
    };
    if seen == Observation::Running && expected.status == Status::Running {
        return;
    }
    let policy = expected.restart_policy;
    let restart_decision =
        restart_decision(seen, policy, expected.restart_streak, expected.ran_for, worker.config.restart_backoff);
    match observe(&worker.db, worker.me.host, expected, seen, restart_decision).await {
        Ok(true) => {
            tracing::info!(instance = %expected.id, ?seen, ?restart_decision, "a container changed by itself");
            if let RestartDecision::Restart { after, .. } = restart_decision {
                worker.wakeups.after(after);
            }
        }
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(%error, instance = %expected.id, "could not write what was seen; the next check will")
        }
    }
}
