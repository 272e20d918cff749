//! The worker: claims jobs, does them on this host, and keeps this host's containers in the state that Postgres holds.
//!
//! `ProvisionWorker` is the state of one worker; its parts run as tasks that share it:
//!
//! ```text
//! dispatch     waits for a wake-up (Redis, a timer, its poll) → claims jobs for the free slots → one task per job
//! attempt        runs one job within its deadline → writes how it ended (`fault`: which errors are retried)
//! jobs/            provision, start, delete: steps that call `backend::{Compute, Network}`, and their undo
//! leases       heartbeat: extends the leases of all active jobs, writes their steps, learns of cancellations
//! reconcile    compares containers with Postgres: restarts those that ended, stops those of failed instances
//! orphans      removes containers and networks that no live row refers to
//! gauges       reports how full the host is
//! watchdog     ends the process when claiming or listening hangs
//! ```
//!
//! A worker has four phases: `new` builds it, its background loops start, `run` claims and drains, and `deregister`
//! lets the next worker of this host start at once.
//!
//! Under failure: a side effect begins only while the lease was confirmed a moment ago, so a worker that is cut off
//! from Postgres stops before another one starts. A worker that crashes leaves its jobs to the next one, which repeats
//! their steps; each is idempotent. Containers and networks of another cluster are never touched. A loop that ends,
//! panics or hangs ends the process with status 70.

mod attempt;
mod dispatch;
mod fault;
mod gauges;
pub mod health;
pub mod host_lock;
mod jobs;
mod leases;
mod orphans;
mod provision_worker;
mod reconcile;
mod steps;
mod timers;
mod watchdog;

pub use provision_worker::ProvisionWorker;

use std::{pin::Pin, sync::Arc};

use tokio::sync::mpsc;

use crate::{
    backend::any::{AnyCompute, AnyNetwork},
    config::worker::WorkerConfig,
    core::{
        db::DualDb,
        queue::{claim::WorkerIdentity, notify::Subscriber, workers},
    },
    shutdown::Shutdown,
};

/// A loop that runs for as long as the worker, with its name; the caller supervises it.
pub type BackgroundLoop = (&'static str, Pin<Box<dyn Future<Output = ()> + Send>>);

/// Returns a worker that is registered as `identity`, and its background loops. They must run from before `run` until
/// after it: the leases of the last jobs are extended by one of them.
pub fn new(
    db: DualDb,
    identity: WorkerIdentity,
    config: WorkerConfig,
    (compute, network): (AnyCompute, AnyNetwork),
    health: health::Health,
) -> (Arc<ProvisionWorker>, Vec<BackgroundLoop>) {
    let (reconcile_requests, requested) = mpsc::unbounded_channel();
    let worker = Arc::new(ProvisionWorker {
        leases: leases::Leases::new(db.clone(), identity, config.times, health),
        timers: timers::Timers::default(),
        db,
        identity,
        config,
        compute,
        network,
        reconcile_requests,
    });
    let [heartbeat, fence, reconcile, orphans, gauges] = [(); 5].map(|()| worker.clone());
    let loops: Vec<BackgroundLoop> = vec![
        ("heartbeat", Box::pin(async move { heartbeat.leases.run_heartbeats().await })),
        ("self_fence", Box::pin(async move { fence.leases.run_self_fence().await })),
        ("reconcile", Box::pin(async move { reconcile::run(&reconcile, requested).await })),
        ("orphans", Box::pin(async move { orphans::run(&orphans).await })),
        ("gauges", Box::pin(async move { gauges::run(&gauges).await })),
    ];
    (worker, loops)
}

/// Claims and runs jobs until `shutdown`, then drains: claims nothing more, and lets running jobs finish within the
/// drain time-out; those that do not are queued again.
pub async fn run(worker: &Arc<ProvisionWorker>, subscriber: Subscriber, shutdown: &Shutdown) {
    let (claiming, listening) = (watchdog::LoopProgress::new("claim"), watchdog::LoopProgress::new("listen"));
    watchdog::watch(vec![claiming.clone(), listening.clone()], worker.config.times.loop_limit());
    dispatch::run(worker, subscriber, (claiming, listening), shutdown).await;
}

/// Records that the worker has stopped, so that the next worker of this host need not wait until it counts as crashed.
pub async fn deregister(worker: &ProvisionWorker) {
    if let Err(error) = workers::mark_stopped(&worker.db, worker.identity).await {
        tracing::warn!(%error, "could not deregister; the next worker of this host may have to wait");
    }
}
