//! `app serve`: a replica of the API.

use std::process::ExitCode;

use crate::{
    cli::ServeArgs,
    config::environment::Environment,
    http::listener,
    shutdown::Shutdown,
    startup::{self, ApiParts, supervisor},
};

/// Runs the API until a signal stops it.
///
/// # Errors
/// An error of the configuration, or the error that stopped the API or its start.
pub async fn run(args: &ServeArgs, environment: Environment) -> anyhow::Result<ExitCode> {
    let database = args.database.resolve(environment)?;
    let redis = args.redis.resolve()?;
    let secrets = args.secrets.resolve(environment, &args.state.state_dir)?;
    let (http, instances, identity) = (args.http, args.instances.clone(), args.identity.resolve());
    let (max_conns, times) = (database.max_conns, args.lease.times());
    let shutdown = Shutdown::on_signals()?;
    let (db, cluster) = startup::database(&database).await?;
    // The address is bound after the database has answered, so that a client that can connect gets an answer.
    let socket = listener::bind("APP_LISTEN", http.address.listen)?;
    let api = ApiParts { db, socket, cluster, redis, http, instances, secrets, identity, max_conns, times };
    let api = startup::start_api(api, &shutdown).await?;
    supervisor::join("api", api).await?;
    Ok(ExitCode::SUCCESS)
}
