//! What several roles are made of.

pub mod supervisor;

use std::{
    net::TcpListener,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use actix_web::{dev::ServerHandle, web};
use anyhow::{Context, bail};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{self, ApiState, wait::Watch},
    backend::{
        any::{AnyCompute, AnyNetwork},
        docker::DockerCompute,
        simulated::{SimulatedCompute, Simulation},
    },
    config::{
        backend::{BackendConfig, BackendKind},
        database::DatabaseConfig,
        http::HttpConfig,
        identity::IdentityConfig,
        instances::InstanceConfig,
        redis::RedisConfig,
        secrets::KeySecrets,
        worker::WorkerConfig,
    },
    core::{
        db::{DualDb, migrate},
        hosts::{self, HostSpec},
        id::{ClusterId, JobId},
        identity::{
            Identity, PgIdentity,
            api_key::KeyRing,
            cache::{CachedIdentity, Start, entry::EntrySigner},
            rate_limit::Limiter,
        },
        instances, maintenance,
        queue::{
            self,
            notify::{Notifier, Subscriber},
            workers::{self, ProcessInfo},
        },
        read_your_writes::ReadYourWrites,
        redis,
    },
    http::listener,
    shutdown::Shutdown,
    telemetry,
    worker::{self, health, host_lock::HostLock},
};

/// The databases, once the primary answers and its schema is there.
///
/// # Errors
/// When it does not answer in time, or `app migrate` has not run.
pub async fn database(config: &DatabaseConfig) -> anyhow::Result<(DualDb, ClusterId)> {
    let started = Instant::now();
    let mut client = migrate::connect(&config.primary, config.wait).await?;
    let pending = loop {
        let pending = migrate::pending(&mut client).await?;
        // In a deployment `app migrate` may be at work this moment.
        if pending.is_empty() || started.elapsed() >= config.wait {
            break pending;
        }
        tracing::info!(?pending, "waiting for `app migrate`");
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    if !pending.is_empty() {
        bail!("DATABASE_URL: the schema lacks {}; run: app migrate", pending.join(", "));
    }
    let db = DualDb::new(config)?;
    let cluster =
        hosts::store::cluster(&db).await?.context("DATABASE_URL: the schema has no cluster; run: app migrate")?;
    Ok((db, cluster))
}

/// The recorder; one per process.
///
/// # Errors
/// When it cannot be installed.
pub fn metrics() -> anyhow::Result<PrometheusHandle> {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    if let Some(handle) = HANDLE.get() {
        return Ok(handle.clone());
    }
    let handle = telemetry::metrics()?;
    supervisor::run("metrics", telemetry::upkeep(handle.clone()));
    Ok(HANDLE.get_or_init(|| handle).clone())
}

/// The backends for a cluster; one pair per process, since the two share their locks.
///
/// # Errors
/// When the runtime does not answer, or the state directory cannot be used.
pub async fn backends(config: &BackendConfig, cluster: ClusterId) -> anyhow::Result<(AnyCompute, AnyNetwork)> {
    match config.compute {
        BackendKind::Docker => {
            let unusable = |error| {
                anyhow::anyhow!(
                    "DOCKER_HOST: cannot use the Docker engine at {} ({error}); example: DOCKER_HOST=unix:///var/run/docker.sock",
                    config.docker_host
                )
            };
            let compute = DockerCompute::connect(Some(&config.docker_host), cluster).map_err(unusable)?;
            let compute = compute.allowing(&config.registries);
            let version = compute.version().await.map_err(unusable)?;
            tracing::info!(version, "docker answers");
            let network_backend = compute.network();
            Ok((AnyCompute::Docker(compute), AnyNetwork::Docker(network_backend)))
        }
        BackendKind::Simulated => {
            let simulation = Simulation {
                state_dir: config.state_dir.clone(),
                latency: config.simulated_latency,
                fail_rate: config.simulated_fail_rate,
                seed: getrandom::u64().unwrap_or_default(),
            };
            let compute = SimulatedCompute::open(&simulation, cluster).map_err(|error| {
                anyhow::anyhow!(
                    "APP_STATE_DIR: {} cannot be used ({error}); example: APP_STATE_DIR=/var/lib/app",
                    config.state_dir.display()
                )
            })?;
            tracing::warn!("simulated backend: no containers run");
            let network_backend = compute.network();
            Ok((AnyCompute::Simulated(compute), AnyNetwork::Simulated(network_backend)))
        }
    }
}

/// What the API is made of.
pub struct ApiParts {
    pub db: DualDb,
    /// Bound before anything else is begun.
    pub socket: TcpListener,
    pub cluster: ClusterId,
    pub redis: RedisConfig,
    pub http: HttpConfig,
    pub instances: InstanceConfig,
    pub secrets: KeySecrets,
    pub identity: IdentityConfig,
    pub max_conns: usize,
    pub lease: Duration,
}

/// Keys in front of Postgres, not hearing news yet.
///
/// # Errors
/// When Redis' address cannot be used.
pub fn cached_identity(
    db: &DualDb,
    cluster: ClusterId,
    redis: &RedisConfig,
    secrets: KeySecrets,
    config: IdentityConfig,
    max_conns: usize,
) -> anyhow::Result<CachedIdentity> {
    let signer = EntrySigner::new(secrets.cache.iter().map(|versioned| versioned.secret.clone()).collect());
    let ring = Arc::new(KeyRing::new(&secrets));
    // Two fifths: lookups of keys must not starve the requests that have theirs.
    let primary_reads = max_conns * 2 / 5;
    Ok(CachedIdentity::new(Start { db: db.clone(), redis, cluster, ring, signer, l1: config.l1, primary_reads })?)
}

/// Starts the API; it runs until the task ends.
///
/// # Errors
/// When the address is taken or Redis cannot be used.
pub async fn start_api(parts: ApiParts, shutdown: &Shutdown) -> anyhow::Result<JoinHandle<std::io::Result<()>>> {
    // First: what is recorded before there is a recorder is lost.
    let metrics = metrics()?;
    let socket = parts.socket;
    let notifier = Notifier::new(&parts.redis, parts.cluster)?;
    redis::check(&parts.redis).await?;
    let ring = Arc::new(KeyRing::new(&parts.secrets));
    let (config, max_conns) = (parts.identity, parts.max_conns);
    let cached = cached_identity(&parts.db, parts.cluster, &parts.redis, parts.secrets, config, max_conns)?;
    let identity = if parts.identity.cache {
        cached.ask_once().await;
        let (news, outbox) = (cached.clone(), cached.revoker());
        supervisor::run("key_cache", async move { news.run().await });
        supervisor::run("key_outbox", async move { outbox.run().await });
        Identity::Cached(cached)
    } else {
        // It keeps no keys, but may not know that others do: what it revokes they have to hear of.
        Identity::Postgres(PgIdentity::new(parts.db.clone(), ring.clone()), cached.revoker())
    };
    let (instance_watch, job_watch) = (Watch::default(), Watch::default());
    let state = web::Data::new(ApiState {
        identity: identity.clone(),
        limiter: Limiter::new(parts.identity.rate_limit, &parts.redis, parts.cluster),
        db: parts.db.clone(),
        ring,
        notifier,
        instances: parts.instances,
        instance_watch: instance_watch.clone(),
        job_watch: job_watch.clone(),
        read_your_writes: ReadYourWrites::new(parts.db.has_replica(), &parts.redis, parts.cluster)?,
        metrics,
        stopping: shutdown.requested.clone(),
    });
    let (for_instances, for_jobs) = (parts.db.clone(), parts.db.clone());
    supervisor::run("instance_watch", async move {
        instance_watch
            .run(move |ids| {
                let db = for_instances.clone();
                async move { instances::store::statuses(&db, ids).await }
            })
            .await;
    });
    supervisor::run("job_watch", async move {
        job_watch
            .run(move |ids| {
                let db = for_jobs.clone();
                async move {
                    let jobs = ids.into_iter().map(JobId::from).collect();
                    let statuses = queue::store::statuses(&db, jobs).await?;
                    Ok(statuses.into_iter().map(|(job, status)| (job.uuid(), status.to_string())).collect())
                }
            })
            .await;
    });
    supervisor::run("maintenance", maintenance::run(parts.db, parts.lease));
    let address = socket.local_addr()?;
    let server = listener::serve(socket, parts.http.workers, parts.http.shutdown_timeout, move |config| {
        if let Err(error) = open_thread(&state) {
            tracing::error!(%error, "this thread asks no redis");
        }
        api::configure(config, &state);
    })?;
    tokio::spawn(stop_when_asked(server.handle(), shutdown.requested.clone(), parts.http.shutdown_delay));
    tracing::info!(%address, "the API listens");
    let forced = shutdown.forced.clone();
    Ok(tokio::spawn(async move {
        tokio::select! {
            ended = server => {
                identity.stop().await;
                ended
            }
            // A server that is stopping waits for its requests and listens to nobody: it is left behind.
            () = forced.cancelled() => Ok(()),
        }
    }))
}

/// Connections of an HTTP worker's own.
fn open_thread(state: &ApiState) -> Result<(), redis::RedisError> {
    if let Identity::Cached(cached) = &state.identity {
        cached.open_thread()?;
    }
    state.limiter.open_thread()
}

/// Readiness fails first; then, after the delay, connections are refused and requests in flight finish.
async fn stop_when_asked(server: ServerHandle, requested: CancellationToken, delay: Duration) {
    requested.cancelled().await;
    tokio::time::sleep(delay).await;
    server.stop(true).await;
}

/// What a worker is made of.
pub struct WorkParts {
    pub db: DualDb,
    pub cluster: ClusterId,
    pub redis: RedisConfig,
    pub worker: WorkerConfig,
    pub backend: BackendConfig,
}

/// Registers this host and starts its worker; it runs until the task ends.
///
/// # Errors
/// When another worker has this name, or a part cannot be had.
pub async fn start_worker(parts: WorkParts, shutdown: &Shutdown) -> anyhow::Result<JoinHandle<()>> {
    let metrics = metrics()?;
    let host = parts.worker.host.clone();
    let lock = HostLock::acquire(&parts.backend.state_dir, parts.cluster, &host.name)?;
    let socket: TcpListener = listener::bind("APP_WORK_LISTEN", parts.worker.listen)?;
    let backends = backends(&parts.backend, parts.cluster).await?;
    // Before anything is registered: what cannot work should leave nothing behind.
    redis::check(&parts.redis).await?;
    let spec = HostSpec {
        name: host.name,
        address: host.address,
        labels: host.labels,
        cpu_millis: host.cpu_millis,
        memory_mib: host.memory_mib,
    };
    let process = ProcessInfo {
        machine_id: machine_id(),
        pid: i32::try_from(std::process::id()).unwrap_or(i32::MAX),
        version: env!("CARGO_PKG_VERSION"),
        slots: parts.worker.slots,
    };
    let (me, requeued) =
        workers::register_worker(&parts.db, &spec, &process, parts.worker.times.boot_silence(), is_alive).await?;
    tracing::info!(host = spec.name, id = %me.host, boot = %me.boot, slots = me.slots, requeued, "the worker is registered");
    let subscriber = Subscriber::new(&parts.redis, parts.cluster, me.host)?;
    let health = health::Health::new(parts.db.clone(), parts.worker.times.lease, shutdown.requested.clone());
    let address = socket.local_addr()?;
    let listener = health::serve(socket, health.clone(), metrics)?;
    tracing::info!(%address, "the worker's health and metrics listen");
    let handle = listener.handle();
    tokio::spawn(listener);
    supervisor::run("maintenance", maintenance::run(parts.db.clone(), parts.worker.times.lease));
    let shutdown = shutdown.clone();
    Ok(tokio::spawn(async move {
        let (worker, loops) = worker::new(parts.db, me, parts.worker, backends, health);
        let stop = CancellationToken::new();
        for (name, task) in loops {
            supervisor::run_until(stop.clone(), name, task);
        }
        worker::run(&worker, subscriber, &shutdown).await;
        // Heartbeats went on until the last job had ended.
        stop.cancel();
        worker::deregister(&worker).await;
        handle.stop(false).await;
        drop(lock);
    }))
}

/// Tells whether a pid of this machine is a living process.
fn is_alive(pid: i32) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) != Err(nix::errno::Errno::ESRCH)
}

/// This boot of this machine (or container): a pid means nothing elsewhere.
fn machine_id() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default();
    format!("{} {namespace}", boot.trim())
}
