//! `app dev`: API and worker in one process, for a laptop.

use std::process::ExitCode;

use super::parts::{self, ApiParts, WorkParts};
use crate::{cli::DevArgs, config::environment::Environment, shutdown::Shutdown};

pub async fn run(args: &DevArgs, environment: Environment) -> anyhow::Result<ExitCode> {
    let database = args.database.resolve(environment)?;
    let redis = args.redis.resolve()?;
    let http = args.http.resolve()?;
    let instances = args.instances.resolve()?;
    let backend = args.backend.resolve(environment)?;
    let worker = args.worker.resolve(backend.compute)?;
    let secrets = args.secrets.resolve(environment, &backend.state_dir)?;
    let shutdown = Shutdown::on_signals()?;
    let (db, cluster) = parts::database(&database).await?;
    let lease = worker.times.lease;
    let work = WorkParts { db: db.clone(), cluster, redis: redis.clone(), worker, backend };
    // First what can fail without having claimed anything.
    let api = ApiParts { db, cluster, redis, http, instances, secrets, lease };
    let api = parts::start_api(api, &shutdown).await?;
    let worker = parts::start_worker(work, &shutdown).await?;
    let (worker, api) = tokio::join!(worker, api);
    worker?;
    api??;
    Ok(ExitCode::SUCCESS)
}
