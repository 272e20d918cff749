//! `app tenants suspend|resume`.

use std::process::ExitCode;

use anyhow::{Context, bail};

use crate::startup;
use crate::{
    cli::TenantArgs,
    config::{
        environment::Environment,
        identity::{IdentityConfig, RateLimit},
        setting,
    },
    core::{
        identity::{cache::Propagation, store},
        instances::spec::is_label,
    },
};

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
    let here = IdentityConfig { cache: true, l1: false, rate_limit: RateLimit { rps: 0.0, burst: 1 } };
    let identity = startup::cached_identity(&db, cluster, &redis, secrets, here, database.max_conns)?;
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
