//! Starts a replica of the API: key cache, waits, maintenance and the HTTP server.
//!
//! Background loops start before the socket is served. After a stop was requested, `/health/ready` fails at once; after
//! `APP_SHUTDOWN_DELAY_MS` the socket refuses connections, and requests in flight get `APP_SHUTDOWN_TIMEOUT_MS` to finish.

use std::{net::TcpListener, sync::Arc, time::Duration};

use actix_web::{dev::ServerHandle, web};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{metrics, renderer, start_maintenance, supervisor};
use crate::{
    api::{self, ApiState, InstanceWatch, JobWatch},
    config::{
        http::HttpConfig, identity::IdentityConfig, instances::InstanceConfig, lease::LeaseTimes, redis::RedisConfig,
        secrets::KeySecrets,
    },
    core::{
        db::DualDb,
        id::{ClusterId, InstanceId},
        identity::{
            ApiKeyService, Identity, PgIdentity,
            api_key::KeyRing,
            cache::{CachedIdentity, Start, entry::EntrySigner},
            rate_limit::RateLimiter,
        },
        instances::{self, InstanceService},
        queue::{self, notify::Notifier},
        read_your_writes::ReadYourWrites,
        redis,
    },
    http::listener,
    shutdown::Shutdown,
};

/// The parts that a replica of the API is built from.
pub struct ApiParts {
    /// The Postgres servers.
    pub db: DualDb,
    /// The bound socket.
    pub socket: TcpListener,
    /// The cluster of the schema.
    pub cluster: ClusterId,
    /// The Redis server.
    pub redis: RedisConfig,
    /// Threads, and how the server stops.
    pub http: HttpConfig,
    /// Ports and addresses that the API assigns.
    pub instances: InstanceConfig,
    /// The secrets behind API keys.
    pub secrets: KeySecrets,
    /// The caching and the rate limits of keys.
    pub identity: IdentityConfig,
    /// Largest number of connections to the primary.
    pub max_conns: usize,
    /// The lease of jobs, which every process rescues when it has expired.
    pub times: LeaseTimes,
}

/// Returns the cache of API keys, whose background loops are not running yet.
///
/// # Errors
/// When the client of Redis cannot be built.
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
    // Lookups of keys may use two fifths of the connections, so that requests with a verified key find a free one.
    let primary_reads = max_conns * 2 / 5;
    Ok(CachedIdentity::new(Start { db: db.clone(), redis, cluster, ring, signer, l1: config.l1, primary_reads })?)
}

/// Starts the API. Returns the task that serves until `shutdown`.
///
/// # Errors
/// When Redis cannot be used or the socket cannot be served.
pub async fn start_api(parts: ApiParts, shutdown: &Shutdown) -> anyhow::Result<JoinHandle<std::io::Result<()>>> {
    // First, because what is recorded before the recorder is installed is lost.
    let metrics = metrics()?;
    let notifier = Notifier::new(&parts.redis, parts.cluster)?;
    redis::check(&parts.redis).await?;
    let ring = Arc::new(KeyRing::new(&parts.secrets));
    let (config, max_conns) = (parts.identity, parts.max_conns);
    let cached = cached_identity(&parts.db, parts.cluster, &parts.redis, parts.secrets, config, max_conns)?;
    let read_your_writes = ReadYourWrites::new(parts.db.has_replica(), &parts.redis, parts.cluster)?;
    // The propagator is needed without a cache, too: other processes may cache the keys that this one changes.
    let keys = ApiKeyService::new(
        parts.db.clone(),
        ring.clone(),
        config.rate_limit,
        cached.propagator(),
        read_your_writes.clone(),
    );
    let identity = if config.cache {
        cached.refresh_once().await;
        let (invalidations, outbox, gauges) = (cached.clone(), cached.propagator(), cached.clone());
        supervisor::run("key_cache", async move { invalidations.run().await });
        supervisor::run("key_outbox", async move { outbox.run().await });
        metrics.on_scrape("key_cache", move || gauges.report());
        Identity::Cached(cached)
    } else {
        Identity::Postgres(PgIdentity::new(parts.db.clone(), ring))
    };
    start_maintenance(&metrics, &parts.db, parts.times);
    let (instance_watch, job_watch) = start_watches(&parts.db);
    let port_range = parts.instances.port_range;
    let instances = InstanceService::new(parts.db.clone(), notifier.clone(), read_your_writes.clone(), port_range);
    let state = web::Data::new(ApiState {
        identity: identity.clone(),
        limiter: RateLimiter::new(config.rate_limit, &parts.redis, parts.cluster),
        read_your_writes,
        db: parts.db,
        keys,
        notifier,
        instances,
        instance_watch,
        job_watch,
        metrics: renderer(metrics),
        stopping: shutdown.requested.clone(),
    });
    serve(parts.socket, parts.http, identity, state, shutdown)
}

/// Starts the loops that read the statuses which clients wait for.
fn start_watches(db: &DualDb) -> (InstanceWatch, JobWatch) {
    let (instance_watch, job_watch) = (InstanceWatch::default(), JobWatch::default());
    let (watch, db_of_instances) = (instance_watch.clone(), db.clone());
    supervisor::run("instance_watch", async move {
        let statuses = move |ids: Vec<InstanceId>| {
            let db = db_of_instances.clone();
            async move { instances::store::statuses(&db, &ids).await }
        };
        watch.run(statuses).await;
    });
    let (watch, db_of_jobs) = (job_watch.clone(), db.clone());
    supervisor::run("job_watch", async move {
        let statuses = move |ids| {
            let db = db_of_jobs.clone();
            async move { queue::store::statuses(&db, ids).await }
        };
        watch.run(statuses).await;
    });
    (instance_watch, job_watch)
}

fn serve(
    socket: TcpListener,
    http: HttpConfig,
    identity: Identity,
    state: web::Data<ApiState>,
    shutdown: &Shutdown,
) -> anyhow::Result<JoinHandle<std::io::Result<()>>> {
    let address = socket.local_addr()?;
    let server = listener::serve(socket, http.workers, http.shutdown_timeout, move |config| {
        if let Err(error) = open_thread(&state) {
            tracing::error!(%error, "cannot create the redis clients of an HTTP thread; it works without redis");
        }
        api::configure(config, &state);
    })?;
    tracing::info!(%address, "the API listens");
    let stop = stop_when_requested(server.handle(), shutdown.requested.clone(), http.shutdown_delay);
    let forced = shutdown.forced.clone();
    Ok(tokio::spawn(async move {
        tokio::select! {
            ended = server => {
                identity.stop().await;
                ended
            }
            never = stop => match never {},
            // A server that is stopping waits for its requests and handles no further command, so it is dropped.
            () = forced.cancelled() => Ok(()),
        }
    }))
}

/// Opens the connections to Redis that an HTTP thread has for itself.
fn open_thread(state: &ApiState) -> Result<(), redis::RedisError> {
    state.identity.open_thread()?;
    state.limiter.open_thread()
}

/// Stops the server after the delay, during which readiness fails already. Never returns: the caller waits for the
/// server itself to end.
async fn stop_when_requested(
    server: ServerHandle,
    requested: CancellationToken,
    delay: Duration,
) -> std::convert::Infallible {
    requested.cancelled().await;
    tokio::time::sleep(delay).await;
    server.stop(true).await;
    std::future::pending().await
}
