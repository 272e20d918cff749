//! `app tenants suspend|resume`.

use std::process::ExitCode;

use anyhow::Context;

use crate::startup;
use crate::{
    cli::TenantArgs,
    config::{
        environment::Environment,
        identity::{IdentityConfig, RateLimit},
    },
    core::identity::{cache::Propagation, store},
};

#[allow(clippy::print_stdout, reason = "what was done is this command's result")]
pub async fn suspend(args: &TenantArgs, environment: Environment, suspended: bool) -> anyhow::Result<ExitCode> {
    let database = args.database.resolve(environment)?;
    let redis = args.redis.resolve()?;
    let secrets = args.secrets.resolve(environment, &args.state.state_dir)?;
    let tenant = &args.name.tenant;
    let (db, cluster) = startup::database(&database).await?;
    let here = IdentityConfig { cache: true, l1: false, rate_limit: RateLimit { rps: 0.0, burst: 1 } };
    let identity = startup::cached_identity(&db, cluster, &redis, secrets, here, database.max_conns)?;
    let changes = store::suspend(&db, tenant, suspended).await?;
    let changes = changes.with_context(|| format!("--tenant: there is no tenant \"{tenant}\""))?;
    let done = format!("{} {tenant}, {} keys", if suspended { "suspended" } else { "resumed" }, changes.len());
    match identity.revoker().propagate(&changes, true).await {
        Propagation::Complete => println!("tenants: {done}"),
        Propagation::Pending { effective_by } => {
            println!("tenants: {done}; redis does not answer: effective by {effective_by}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
