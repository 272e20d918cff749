//! Starts the worker of this host: takes the host's lock, registers the host, and runs the worker's loops.
//!
//! Everything that can fail without a trace fails before the host is registered. At the end the worker drains: it claims
//! nothing more and lets its jobs finish, while heartbeats go on. Then its loops stop, and it deregisters, so that the next
//! worker of this host need not wait for its lease to expire.

use tokio::task::JoinHandle;

use super::{backends, metrics, renderer, start_maintenance, supervisor};
use crate::{
    config::{backend::BackendConfig, redis::RedisConfig, worker::WorkerConfig},
    core::{
        db::DualDb,
        hosts::HostSpec,
        id::ClusterId,
        queue::{
            notify::Subscriber,
            workers::{self, ProcessInfo},
        },
        redis,
    },
    http::listener,
    shutdown::Shutdown,
    worker::{self, health, host_lock::HostLock},
};

/// The parts that a worker is built from.
pub struct WorkParts {
    /// The Postgres servers.
    pub db: DualDb,
    /// The cluster of the schema.
    pub cluster: ClusterId,
    /// The Redis server.
    pub redis: RedisConfig,
    /// The worker and its host.
    pub worker: WorkerConfig,
    /// The backends that run containers and set up their networks.
    pub backend: BackendConfig,
}

/// Registers this host and starts its worker. Returns the task that works until `shutdown` and then drains.
///
/// # Errors
/// When another worker has this name, or when the address, a backend or Redis cannot be used.
pub async fn start_worker(parts: WorkParts, shutdown: &Shutdown) -> anyhow::Result<JoinHandle<()>> {
    let metrics = metrics()?;
    let WorkParts { db, cluster, redis, worker: config, backend } = parts;
    let times = config.times;
    let lock = HostLock::acquire(&backend.state_dir, cluster, &config.host.name)?;
    let socket = listener::bind("APP_WORK_LISTEN", config.listen)?;
    let backends = backends(&backend, cluster).await?;
    redis::check(&redis).await?;
    let (spec, process) = (host_spec(&config), process_info(config.slots));
    let (me, requeued) = workers::register_worker(&db, &spec, &process, times.boot_silence(), is_alive).await?;
    tracing::info!(host = spec.name, id = %me.host, boot = %me.boot, slots = me.slots, requeued, "the worker is registered");
    let subscriber = Subscriber::new(&redis, cluster, me.host)?;
    let health = health::Health::new(db.clone(), times.lease, shutdown.requested.clone());
    let address = socket.local_addr()?;
    let listener = health::serve(socket, health.clone(), renderer(metrics.clone()))?;
    tracing::info!(%address, "the worker's health and metrics listen");
    let listener = supervisor::run("health", async move {
        if let Err(error) = listener.await {
            tracing::error!(%error, "the listener of the worker's health failed");
        }
    });
    start_maintenance(&metrics, &db, times);
    let shutdown = shutdown.clone();
    Ok(tokio::spawn(async move {
        let (worker, loops) = worker::new(db, me, config, backends, health);
        let loops: Vec<_> = loops.into_iter().map(|(name, task)| supervisor::run(name, task)).collect();
        worker::run(&worker, subscriber, &shutdown).await;
        // Heartbeats went on until the last job had ended.
        for running in loops {
            running.stop().await;
        }
        worker::deregister(&worker).await;
        listener.stop().await;
        drop(lock);
    }))
}

fn host_spec(config: &WorkerConfig) -> HostSpec {
    let host = config.host.clone();
    HostSpec {
        name: host.name,
        address: host.address,
        labels: host.labels,
        cpu_millis: host.cpu_millis,
        memory_mib: host.memory_mib,
    }
}

fn process_info(slots: usize) -> ProcessInfo {
    ProcessInfo {
        machine_id: machine_id(),
        pid: i32::try_from(std::process::id()).unwrap_or(i32::MAX),
        version: env!("CARGO_PKG_VERSION"),
        slots,
    }
}

/// Returns whether a process of this machine with this pid is alive.
fn is_alive(pid: i32) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) != Err(nix::errno::Errno::ESRCH)
}

/// Returns the identity of this boot of this machine and of this pid namespace: elsewhere a pid means another process.
fn machine_id() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default();
    format!("{} {namespace}", boot.trim())
}
