//! What containers do by themselves: ends are noticed by the runtime's events, and by comparing all from time to time.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::Context;
use crate::{backend::{BackendError, Compute, ContainerState, Fabric, Observed}, core::{id::InstanceId, instances::{observe::{Seen, Verdict, observe, verdict}, store::{self, Expected}}}};

/// Watches for ever.
pub(super) async fn run(context: &Arc<Context>, mut to_look_at: mpsc::UnboundedReceiver<InstanceId>) {
    loop {
        let mut changes = context.compute.changes();
        let mut recheck = tokio::time::interval(context.config.recheck);
        loop {
            tokio::select! {
                change = changes.next() => match change {
                    // What a job of ours does to it; once that has ended, it asks for a look.
                    Some(Ok(change)) if context.leases.holds(change.instance) => {}
                    Some(Ok(change)) => look_at(context, change.instance).await,
                    Some(Err(error)) => {
                        tracing::warn!(%error, "the runtime's events ended; subscribing again");
                        break;
                    }
                    None => break,
                },
                Some(instance) = to_look_at.recv() => look_at(context, instance).await,
                // The first tick is at once: whatever happened before the subscription.
                _ = recheck.tick() => look_at_all(context).await,
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn look_at(context: &Context, instance: InstanceId) {
    // That it runs is the usual answer, and costs Postgres nothing.
    if let Ok(Some(observed)) = context.compute.inspect(instance).await
        && observed.state == ContainerState::Running
    {
        return;
    }
    // The row before the container that it is compared with.
    let expected = match store::expected_on(&context.db, context.me.host, Some(vec![instance])).await {
        Ok(expected) => expected,
        Err(error) => return tracing::warn!(%error, %instance, "could not compare an instance; the next check will"),
    };
    for expected in expected.into_iter().filter(should_run) {
        match context.compute.inspect(instance).await {
            Ok(observed) => judge(context, &expected, observed.as_ref()).await,
            Err(error) => tracing::warn!(%error, %instance, "could not inspect a container; the next check will"),
        }
    }
}

async fn look_at_all(context: &Context) {
    // First the rows: a container that appears in between belongs to no row that should run yet.
    let expected = match store::expected_on(&context.db, context.me.host, None).await {
        Ok(expected) => expected,
        Err(error) => return tracing::warn!(%error, "could not compare the instances; the next check will"),
    };
    let observed: HashMap<InstanceId, Observed> = match context.compute.list().await {
        Ok(list) => list.into_iter().map(|observed| (observed.instance, observed)).collect(),
        Err(error) => return tracing::warn!(%error, "could not list the containers; the next check will"),
    };
    #[allow(clippy::cast_precision_loss, reason = "a host has fewer than 2^52 containers")]
    metrics::gauge!("host_containers").set(observed.values().filter(|one| one.is_of(context.me.host)).count() as f64);
    for expected in expected.iter().filter(|expected| should_run(expected)) {
        judge(context, expected, observed.get(&expected.id)).await;
    }
    for failed in expected.iter().filter(|expected| expected.status == "failed") {
        // One that a job has in hand is that job's.
        if let Some(container) = observed.get(&failed.id).filter(|_| !context.leases.holds(failed.id)) {
            settle_failed(context, failed, container).await;
        }
    }
}

/// A worker that died too often, an undo that failed, or a deadline leaves a container though its instance failed. One that
/// never ran holds nothing and goes. One that did is stopped and stays with its data, until it is deleted or started again.
async fn settle_failed(context: &Context, failed: &Expected, container: &Observed) {
    let settled = match container.state {
        ContainerState::Exited { .. } => return,
        ContainerState::Running => {
            tracing::warn!(instance = %failed.id, "stopping the container of a failed instance");
            // Killed: the checks of all others wait here.
            context.compute.stop(failed.id, Duration::ZERO).await
        }
        ContainerState::Created => {
            tracing::warn!(instance = %failed.id, "removing a container that never ran, of a failed instance");
            remove_unused(context, failed, container).await
        }
    };
    if let Err(error) = settled {
        tracing::warn!(%error, instance = %failed.id, "could not settle it; the next check will try again");
    }
}

async fn remove_unused(context: &Context, failed: &Expected, container: &Observed) -> Result<(), BackendError> {
    context.fabric.unpublish(failed.id).await?;
    context.compute.discard(container).await?;
    context.fabric.release_network(failed.network).await.map(drop)
}

fn should_run(expected: &Expected) -> bool {
    matches!(expected.status.as_str(), "running" | "unknown")
}

async fn judge(context: &Context, expected: &Expected, observed: Option<&Observed>) {
    let seen = match observed.map(|observed| observed.state) {
        Some(ContainerState::Running) => Seen::Running,
        Some(ContainerState::Exited { exit_code, oom_killed }) => Seen::Ended { exit_code, oom_killed },
        // Created but not running, though the job had started it: somebody replaced it.
        Some(ContainerState::Created) | None => Seen::Gone,
    };
    if seen == Seen::Running && expected.status == "running" {
        return;
    }
    let policy = &expected.restart_policy;
    let verdict = verdict(seen, policy, expected.restart_streak, expected.ran_for, context.config.restart_backoff);
    match observe(&context.db, context.me.host, expected, seen, verdict).await {
        Ok(Some(_)) => {
            tracing::info!(instance = %expected.id, ?seen, ?verdict, "a container changed by itself");
            if let Verdict::Restart { after, .. } = verdict {
                context.wakeups.after(after);
            }
        }
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(%error, instance = %expected.id, "could not write what was seen; the next check will")
        }
    }
}
