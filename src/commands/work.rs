//! `app work`: the worker of a host.

use std::process::ExitCode;

use crate::{
    cli::WorkArgs,
    config::environment::Environment,
    shutdown::Shutdown,
    startup::{self, WorkParts, supervisor},
};

/// Runs the worker until a signal stops it.
///
/// # Errors
/// An error of the configuration, or the error that stopped the start of the worker.
pub async fn run(args: &WorkArgs, environment: Environment) -> anyhow::Result<ExitCode> {
    let database = args.database.resolve(environment)?;
    let redis = args.redis.resolve()?;
    let backend = args.backend.resolve(environment)?;
    let worker = args.worker.resolve(backend.compute)?;
    let shutdown = Shutdown::on_signals()?;
    let (db, cluster) = startup::database(&database).await?;
    let worker = startup::start_worker(WorkParts { db, cluster, redis, worker, backend }, &shutdown).await?;
    supervisor::join("worker", worker).await;
    Ok(ExitCode::SUCCESS)
}
