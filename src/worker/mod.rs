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

pub use watchdog::EXIT_STATUS;

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::{
    backend::any::{AnyCompute, AnyNetwork},
    config::worker::WorkerConfig,
    core::{
        db::DualDb,
        id::InstanceId,
        queue::{claim::WorkerIdentity, notify::Subscriber, workers},
    },
    shutdown::Shutdown,
    telemetry,
};

/// What every part of the worker needs.
pub(crate) struct ProvisionWorker {
    pub db: DualDb,
    pub me: WorkerIdentity,
    pub config: WorkerConfig,
    pub compute: AnyCompute,
    pub network_backend: AnyNetwork,
    pub leases: leases::Leases,
    pub wakeups: timers::Wakeups,
    /// Asks the observer to look at an instance.
    pub look: mpsc::UnboundedSender<InstanceId>,
}

/// Works until `shutdown`, then drains: no more claims, running jobs finish within the drain time-out or are given
/// back, and the next worker is told that it need not wait.
pub async fn run(
    db: DualDb,
    me: WorkerIdentity,
    config: WorkerConfig,
    backends: (AnyCompute, AnyNetwork),
    subscriber: Subscriber,
    health: health::Health,
    shutdown: Shutdown,
) {
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
    let background = tokio_util::sync::CancellationToken::new();
    let loops = TaskTracker::new();
    for task in [Task::Heartbeat, Task::Fence, Task::Observe(to_look_at), Task::Sweep, Task::Gauges] {
        let (worker, stop) = (worker.clone(), background.clone());
        loops.spawn(async move {
            let running = tokio::spawn(async move { task.run(&worker).await });
            let abort = running.abort_handle();
            // None of them ends by itself. One that does has panicked, and the rest would go on without it.
            if let Some(ended) = stop.run_until_cancelled(running).await {
                tracing::error!(?ended, "a part of the worker has ended; this process ends");
                telemetry::exit(watchdog::EXIT_STATUS);
            }
            abort.abort();
        });
    }
    let (claiming, listening) = (watchdog::Pulse::new("claim"), watchdog::Pulse::new("listen"));
    watchdog::watch(vec![claiming.clone(), listening.clone()], worker.config.times.loop_limit());
    dispatch::run(&worker, subscriber, (claiming, listening), &shutdown).await;
    // Heartbeats go on until the last job has ended.
    background.cancel();
    loops.close();
    loops.wait().await;
    if let Err(error) = workers::mark_stopped(&worker.db, me).await {
        tracing::warn!(%error, "could not say goodbye; the next worker of this name waits until the lease is over");
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
