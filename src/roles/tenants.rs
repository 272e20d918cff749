//! `app tenants suspend|resume`.

use std::process::ExitCode;

use anyhow::Context;

use super::parts;
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
    let secrets = args.secrets.resolve(environment, &args.state_dir)?;
    let (db, cluster) = parts::database(&database).await?;
    let here = IdentityConfig { cache: true, l1: false, rate_limit: RateLimit { rps: 0.0, burst: 1 } };
    let identity = parts::cached_identity(&db, cluster, &redis, secrets, here, database.max_conns)?;
    let changes = store::suspend(&db, &args.tenant, suspended).await?;
    let changes = changes.with_context(|| format!("--tenant: there is no tenant \"{}\"", args.tenant))?;
    let done = format!("{} {}, {} keys", if suspended { "suspended" } else { "resumed" }, args.tenant, changes.len());
    match identity.revoker().propagate(&changes, true).await {
        Propagation::Complete => println!("tenants: {done}"),
        Propagation::Pending { effective_by } => {
            println!("tenants: {done}; redis does not answer: effective by {effective_by}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
