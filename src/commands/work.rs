//! `app work`: a worker on a provisioning host.

use std::process::ExitCode;

use crate::startup::{self, WorkParts};
use crate::{cli::WorkArgs, config::environment::Environment, shutdown::Shutdown};

pub async fn run(args: &WorkArgs, environment: Environment) -> anyhow::Result<ExitCode> {
    let database = args.database.resolve(environment)?;
    let redis = args.redis.resolve()?;
    let backend = args.backend.resolve(environment)?;
    let worker = args.worker.resolve(backend.compute)?;
    let shutdown = Shutdown::on_signals()?;
    let (db, cluster) = startup::database(&database).await?;
    startup::start_worker(WorkParts { db, cluster, redis, worker, backend }, &shutdown).await?.await?;
    Ok(ExitCode::SUCCESS)
}
