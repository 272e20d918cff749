//! `app dev`: API and worker in one process, for a laptop.

use std::process::ExitCode;

use crate::startup::{self, ApiParts, WorkParts};
use crate::{cli::DevArgs, config::environment::Environment, http::listener, shutdown::Shutdown};

pub async fn run(args: &DevArgs, environment: Environment) -> anyhow::Result<ExitCode> {
    let database = args.database.resolve(environment)?;
    let redis = args.redis.resolve()?;
    let http = args.http.resolve()?;
    let instances = args.instances.resolve()?;
    let backend = args.backend.resolve(environment)?;
    let worker = args.worker.resolve(backend.compute)?;
    let secrets = args.secrets.resolve(environment, &backend.state_dir)?;
    let identity = args.identity.resolve()?;
    let max_conns = database.max_conns;
    let shutdown = Shutdown::on_signals()?;
    // First what can fail without anything begun.
    let socket = listener::bind("APP_LISTEN", http.listen)?;
    let (db, cluster) = startup::database(&database).await?;
    let lease = worker.times.lease;
    let work = WorkParts { db: db.clone(), cluster, redis: redis.clone(), worker, backend };
    let worker = startup::start_worker(work, &shutdown).await?;
    let api = ApiParts { db, socket, cluster, redis, http, instances, secrets, identity, max_conns, lease };
    let api = startup::start_api(api, &shutdown).await?;
    // One that panics ends the process: the other would go on without it.
    let ((), api) = tokio::try_join!(worker, api)?;
    api?;
    Ok(ExitCode::SUCCESS)
}
