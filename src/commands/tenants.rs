//! `app tenants suspend` and `app tenants resume`: refuse all keys of a tenant everywhere, and accept them again.

use std::process::ExitCode;

use anyhow::Context;

use crate::{
    cli::TenantArgs,
    config::{
        environment::Environment,
        identity::{IdentityConfig, RateLimit},
    },
    core::{identity::cache::Propagation, tenants::TenantService},
    startup,
};

/// Suspends or resumes a tenant, and prints when that is in force everywhere.
///
/// # Errors
/// The first setting that is wrong, a tenant that does not exist, or the error of the database.
#[allow(clippy::print_stdout, reason = "the outcome is this command's output")]
pub async fn suspend(args: &TenantArgs, environment: Environment, suspended: bool) -> anyhow::Result<ExitCode> {
    let database = args.database.resolve(environment)?;
    let redis = args.redis.resolve()?;
    let secrets = args.secrets.resolve(environment, &args.state.state_dir)?;
    let tenant = &args.name.tenant;
    let (db, cluster) = startup::database(&database).await?;
    let config = IdentityConfig { cache: true, l1: false, rate_limit: RateLimit { rps: 0.0, burst: 1 } };
    let identity = startup::cached_identity(&db, cluster, &redis, secrets, config, database.max_conns)?;
    let (tenants, propagator) = (TenantService::new(db), identity.propagator());
    let (verb, done) = if suspended {
        ("suspended", tenants.suspend(tenant, &propagator).await?)
    } else {
        ("resumed", tenants.resume(tenant, &propagator).await?)
    };
    let done = done.with_context(|| format!("--tenant: there is no tenant \"{tenant}\""))?;
    let what = format!("{verb} {tenant}, {} keys", done.keys);
    match done.propagation {
        Propagation::Complete => println!("tenants: {what}"),
        Propagation::Pending { effective_by } => {
            println!("tenants: {what}; redis does not answer: effective by {effective_by}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
