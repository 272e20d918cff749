//! The worker: claims jobs, does them on this host, and watches what runs here.
//!
//! `dispatch` claims and runs, `leases` keeps the claims alive, `jobs` does the work in `steps`, `fault` decides what an
//! error means, `observer` notices what containers do by themselves, `sweep` removes what nobody owns. Promises: no
//! side effect under a lease that may be lost; nothing of another cluster is touched.

mod attempt;
mod dispatch;
mod fault;
mod gauges;
pub mod health;
pub mod host_lock;
mod jobs;
mod leases;
mod orphans;
mod random;
mod reconcile;
mod steps;
mod timers;
mod watchdog;

use std::{pin::Pin, sync::Arc};

use tokio::sync::mpsc;

use crate::{
    backend::any::{AnyCompute, AnyNetwork},
    config::worker::WorkerConfig,
    core::{
        db::DualDb,
        id::InstanceId,
        queue::{claim::WorkerIdentity, notify::Subscriber, workers},
    },
    shutdown::Shutdown,
};

/// What every part of the worker needs.
pub struct ProvisionWorker {
    pub(crate) db: DualDb,
    pub(crate) me: WorkerIdentity,
    pub(crate) config: WorkerConfig,
    pub(crate) compute: AnyCompute,
    pub(crate) network_backend: AnyNetwork,
    pub(crate) leases: leases::Leases,
    pub(crate) wakeups: timers::Wakeups,
    /// Asks the observer to look at an instance.
    pub(crate) look: mpsc::UnboundedSender<InstanceId>,
}

/// A loop that runs for as long as the worker, with its name; the caller supervises it.
pub type BackgroundLoop = (&'static str, Pin<Box<dyn Future<Output = ()> + Send>>);

/// Returns a worker and its background loops, which must run from before `run` until after it.
pub fn new(
    db: DualDb,
    me: WorkerIdentity,
    config: WorkerConfig,
    backends: (AnyCompute, AnyNetwork),
    health: health::Health,
) -> (Arc<ProvisionWorker>, Vec<BackgroundLoop>) {
    let (look, to_look_at) = mpsc::unbounded_channel();
    let worker = Arc::new(ProvisionWorker {
        leases: leases::Leases::new(db.clone(), me, config.times, health),
        wakeups: timers::Wakeups::default(),
        db,
        me,
        config,
        compute: backends.0,
        network_backend: backends.1,
        look,
    });
    let tasks = [
        ("heartbeat", Task::Heartbeat),
        ("fence", Task::Fence),
        ("reconcile", Task::Observe(to_look_at)),
        ("orphans", Task::Sweep),
        ("gauges", Task::Gauges),
    ];
    let loops = tasks.map(|(name, task)| {
        let worker = worker.clone();
        let running: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move { task.run(&worker).await });
        (name, running)
    });
    (worker, loops.into())
}

/// Claims and runs jobs until `shutdown`, then drains: no more claims, and running jobs finish within the drain time-out
/// or are given back.
pub async fn run(worker: &Arc<ProvisionWorker>, subscriber: Subscriber, shutdown: &Shutdown) {
    let (claiming, listening) = (watchdog::Pulse::new("claim"), watchdog::Pulse::new("listen"));
    watchdog::watch(vec![claiming.clone(), listening.clone()], worker.config.times.loop_limit());
    dispatch::run(worker, subscriber, (claiming, listening), shutdown).await;
}

/// Records that the worker has stopped, so that the next one of this host need not wait until the lease is over.
pub async fn deregister(worker: &ProvisionWorker) {
    if let Err(error) = workers::mark_stopped(&worker.db, worker.me).await {
        tracing::warn!(%error, "could not deregister; the next worker of this name waits until the lease is over");
    }
}

enum Task {
    Heartbeat,
    Fence,
    Observe(mpsc::UnboundedReceiver<InstanceId>),
    Sweep,
    Gauges,
}

impl Task {
    async fn run(self, worker: &Arc<ProvisionWorker>) {
        match self {
            Self::Heartbeat => worker.leases.run().await,
            Self::Fence => worker.leases.fence().await,
            Self::Observe(to_look_at) => reconcile::run(worker, to_look_at).await,
            Self::Sweep => orphans::run(worker).await,
            Self::Gauges => gauges::run(worker).await,
        }
    }
}
