//! `app serve`: an API replica.

use std::process::ExitCode;

use crate::startup::{self, ApiParts};
use crate::{
    cli::ServeArgs,
    config::{environment::Environment, setting},
    http::listener,
    shutdown::Shutdown,
};

pub async fn run(args: &ServeArgs, environment: Environment) -> anyhow::Result<ExitCode> {
    let database = args.database.resolve(environment)?;
    let redis = args.redis.resolve()?;
    let http = args.http.resolve()?;
    let instances = args.instances.resolve()?;
    let lease = setting("APP_LEASE_MS", &args.lease_ms, "30000").millis(600, 3_600_000)?;
    let state_dir = setting("APP_STATE_DIR", &args.state_dir, "/var/lib/app").directory()?;
    let secrets = args.secrets.resolve(environment, &state_dir)?;
    let identity = args.identity.resolve()?;
    let max_conns = database.max_conns;
    let shutdown = Shutdown::on_signals()?;
    let (db, cluster) = startup::database(&database).await?;
    // Not earlier: who connects should be answered.
    let socket = listener::bind("APP_LISTEN", http.listen)?;
    let api = ApiParts { db, socket, cluster, redis, http, instances, secrets, identity, max_conns, lease };
    startup::start_api(api, &shutdown).await?.await??;
    Ok(ExitCode::SUCCESS)
}
