//! `app dev`: the API and a worker in one process, for development.

use std::process::ExitCode;

use crate::{
    cli::DevArgs,
    config::environment::Environment,
    http::listener,
    shutdown::Shutdown,
    startup::{self, ApiParts, WorkParts, supervisor},
};

/// Runs both until a signal stops them.
///
/// # Errors
/// An error of the configuration, or the error that stopped a part or its start.
pub async fn run(args: &DevArgs, environment: Environment) -> anyhow::Result<ExitCode> {
    let database = args.database.resolve(environment)?;
    let redis = args.redis.resolve()?;
    let backend = args.backend.resolve(environment)?;
    let worker = args.worker.resolve(backend.compute)?;
    let secrets = args.secrets.resolve(environment, &backend.state_dir)?;
    let (http, instances, identity) = (args.http, args.instances.clone(), args.identity.resolve());
    let (max_conns, times) = (database.max_conns, worker.times);
    let shutdown = Shutdown::on_signals()?;
    // The address is bound first, so that an address in use is reported before anything else has begun.
    let socket = listener::bind("APP_LISTEN", http.address.listen)?;
    let (db, cluster) = startup::database(&database).await?;
    let work = WorkParts { db: db.clone(), cluster, redis: redis.clone(), worker, backend };
    let worker = startup::start_worker(work, &shutdown).await?;
    let api = ApiParts { db, socket, cluster, redis, http, instances, secrets, identity, max_conns, times };
    let api = startup::start_api(api, &shutdown).await?;
    let ((), served) = tokio::join!(supervisor::join("worker", worker), supervisor::join("api", api));
    served?;
    Ok(ExitCode::SUCCESS)
}
