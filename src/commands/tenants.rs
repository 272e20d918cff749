//! `app tenants suspend` and `app tenants resume`: refuse all keys of a tenant everywhere, and accept them again.

use std::process::ExitCode;

use anyhow::{Context, bail};

use crate::{
    cli::TenantArgs,
    config::{
        environment::Environment,
        identity::{IdentityConfig, RateLimit},
        setting,
    },
    core::{identity::cache::Propagation, instances::spec::is_label, tenants::TenantService},
    startup,
};

/// Suspends or resumes a tenant, and prints when that is in force everywhere.
///
/// # Errors
/// The first setting that is wrong, a tenant that does not exist, or what the database says.
#[allow(clippy::print_stdout, reason = "what was done is this command's result")]
pub async fn suspend(args: &TenantArgs, environment: Environment, suspended: bool) -> anyhow::Result<ExitCode> {
    if !is_label(&args.tenant) {
        let tenant = setting("APP_TENANT", &args.tenant, "acme");
        bail!(tenant.wrong(format_args!("\"{}\" is not 1 to 63 of a-z, 0-9 and '-'", args.tenant)));
    }
    let database = args.database.resolve(environment)?;
    let redis = args.redis.resolve()?;
    let state_dir = setting("APP_STATE_DIR", &args.state_dir, "/var/lib/app").directory()?;
    let secrets = args.secrets.resolve(environment, &state_dir)?;
    let (db, cluster) = startup::database(&database).await?;
    let config = IdentityConfig { cache: true, l1: false, rate_limit: RateLimit { rps: 0.0, burst: 1 } };
    let identity = startup::cached_identity(&db, cluster, &redis, secrets, config, database.max_conns)?;
    let (tenants, propagator) = (TenantService::new(db), identity.propagator());
    let (verb, done) = if suspended {
        ("suspended", tenants.suspend(&args.tenant, &propagator).await?)
    } else {
        ("resumed", tenants.resume(&args.tenant, &propagator).await?)
    };
    let done = done.with_context(|| format!("--tenant: there is no tenant \"{}\"", args.tenant))?;
    let what = format!("{verb} {}, {} keys", args.tenant, done.keys);
    match done.propagation {
        Propagation::Complete => println!("tenants: {what}"),
        Propagation::Pending { effective_by } => {
            println!("tenants: {what}; redis does not answer: effective by {effective_by}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
