//! Reconciliation: compares this host's containers with Postgres, and acts where they differ outside any job.
//!
//! It runs for one instance when the runtime reports a change of its container or a job of it has ended, and for all
//! instances at each `APP_RECHECK_MS`, so that an event that was lost is made up for.
//!
//! ```text
//! instance should run, process runs          nothing (an `unknown` instance becomes `running`)
//! instance should run, process ended or gone `restart_decision`: stopped, a start job after a pause, or a crash loop
//! instance failed, process runs              the container is stopped, and stays with its data
//! instance failed, process never started     the container is removed: it holds no data
//! ```
//!
//! Instances with an active job here are left to that job. The row is always read before the container, and `observe`
//! writes nothing when the row has changed since, so that the end of a job wins. What fails is tried again by the next
//! check.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::provision_worker::ProvisionWorker;
use crate::{
    backend::{BackendError, Compute, Container, ContainerState, Network},
    core::{
        id::InstanceId,
        instances::{
            Status,
            observe::{Observation, RestartDecision, observe, restart_decision},
            store::{self, Expected},
        },
    },
};

/// The pause before the runtime's events are subscribed to again.
const RESUBSCRIBE_INTERVAL: Duration = Duration::from_secs(1);

/// Reconciles until it is dropped. `requested`: instances to be compared now.
pub(super) async fn run(worker: &Arc<ProvisionWorker>, mut requested: mpsc::UnboundedReceiver<InstanceId>) {
    loop {
        let mut changes = worker.compute.changes();
        // The first tick comes at once: something may have changed before the subscription.
        let mut recheck = tokio::time::interval(worker.config.recheck);
        loop {
            tokio::select! {
                change = changes.next() => match change {
                    // The active job caused the change, or requests a comparison at its own end.
                    Some(Ok(change)) if worker.leases.has_job_of(change.instance) => {}
                    Some(Ok(change)) => reconcile(worker, change.instance).await,
                    Some(Err(error)) => {
                        tracing::warn!(%error, "the runtime's events ended; subscribing again");
                        break;
                    }
                    None => break,
                },
                Some(instance) = requested.recv() => reconcile(worker, instance).await,
                _ = recheck.tick() => reconcile_all(worker).await,
            }
        }
        tokio::time::sleep(RESUBSCRIBE_INTERVAL).await;
    }
}

async fn reconcile(worker: &ProvisionWorker, instance: InstanceId) {
    // Usually the process runs, and nothing has to be read from Postgres.
    if let Ok(Some(container)) = worker.compute.inspect(instance).await
        && container.state == ContainerState::Running
    {
        return;
    }
    let expected = match store::expected_on(&worker.db, worker.identity.host, Some(vec![instance])).await {
        Ok(expected) => expected,
        Err(error) => {
            return tracing::warn!(%error, %instance, "could not read the instance; the next check tries again");
        }
    };
    for expected in expected.into_iter().filter(should_run) {
        match worker.compute.inspect(instance).await {
            Ok(container) => apply(worker, &expected, container.as_ref()).await,
            Err(error) => {
                tracing::warn!(%error, %instance, "could not inspect a container; the next check tries again");
            }
        }
    }
}

async fn reconcile_all(worker: &ProvisionWorker) {
    let expected = match store::expected_on(&worker.db, worker.identity.host, None).await {
        Ok(expected) => expected,
        Err(error) => {
            return tracing::warn!(%error, "could not read the instances; the next check tries again");
        }
    };
    let containers: HashMap<InstanceId, Container> = match worker.compute.list().await {
        Ok(list) => list.into_iter().map(|container| (container.instance, container)).collect(),
        Err(error) => return tracing::warn!(%error, "could not list the containers; the next check tries again"),
    };
    let of_this_host = containers.values().filter(|container| container.belongs_to(worker.identity.host)).count();
    #[allow(clippy::cast_precision_loss, reason = "a host has fewer than 2^52 containers")]
    metrics::gauge!("host_containers").set(of_this_host as f64);
    for expected in expected.iter().filter(|expected| should_run(expected)) {
        apply(worker, expected, containers.get(&expected.id)).await;
    }
    for failed in expected.iter().filter(|expected| expected.status == Status::Failed) {
        if let Some(container) = containers.get(&failed.id).filter(|_| !worker.leases.has_job_of(failed.id)) {
            clean_up_failed(worker, failed, container).await;
        }
    }
}

/// Stops or removes the container of a failed instance. One is left when the worker crashed too often, or when an undo
/// failed or a deadline passed. A container that never ran holds no data and is removed. One that ran is stopped, and
/// stays with its data until the instance is deleted or started again.
async fn clean_up_failed(worker: &ProvisionWorker, failed: &Expected, container: &Container) {
    let result = match container.state {
        ContainerState::Exited { .. } => return,
        ContainerState::Running => {
            tracing::warn!(instance = %failed.id, "stopping the container of a failed instance");
            // Without a grace period: the checks of all other instances wait for this one.
            worker.compute.stop(failed.id, Duration::ZERO).await
        }
        ContainerState::Created => {
            tracing::warn!(instance = %failed.id, "removing the container of a failed instance; it never ran");
            remove_unused(worker, failed, container).await
        }
    };
    if let Err(error) = result {
        let instance = failed.id;
        tracing::warn!(%error, %instance, "could not clean up a failed instance; the next check tries again");
    }
}

async fn remove_unused(worker: &ProvisionWorker, failed: &Expected, container: &Container) -> Result<(), BackendError> {
    worker.network.unpublish(failed.id).await?;
    worker.compute.discard(container).await?;
    worker.network.release_network(failed.network).await.map(drop)
}

fn should_run(expected: &Expected) -> bool {
    matches!(expected.status, Status::Running | Status::Unknown)
}

/// Writes what follows from the state of the container of an instance that should run.
async fn apply(worker: &ProvisionWorker, expected: &Expected, container: Option<&Container>) {
    let observation = match container.map(|container| container.state) {
        Some(ContainerState::Running) => Observation::Running,
        Some(ContainerState::Exited { exit_code, oom_killed }) => Observation::Ended { exit_code, oom_killed },
        // The instance's job had started its container, so this is another one, created outside this system.
        Some(ContainerState::Created) | None => Observation::Gone,
    };
    if observation == Observation::Running && expected.status == Status::Running {
        return;
    }
    let decision = restart_decision(
        observation,
        expected.restart_policy,
        expected.restart_streak,
        expected.ran_for,
        worker.config.restart_backoff,
    );
    match observe(&worker.db, worker.identity.host, expected, observation, decision).await {
        Ok(true) => {
            tracing::info!(instance = %expected.id, ?observation, ?decision, "container changed outside a job");
            if let RestartDecision::Restart { after, .. } = decision {
                worker.timers.wake_after(after);
            }
        }
        // The row has changed since it was read.
        Ok(false) => {}
        Err(error) => {
            let instance = expected.id;
            tracing::warn!(%error, %instance, "could not record a container change; the next check tries again");
        }
    }
}
