//! `app keys create`: the first key, and later ones from a shell.

use std::process::ExitCode;

use anyhow::Context;
use secrecy::ExposeSecret;

use crate::startup;
use crate::{
    cli::KeysCreateArgs,
    config::environment::Environment,
    core::{
        id::KeyId,
        identity::{api_key::KeyRing, create, rate_limit, store::KeySpec},
        tenants,
    },
};

pub async fn create(args: &KeysCreateArgs, environment: Environment) -> anyhow::Result<ExitCode> {
    let limits = args.limits.resolve()?;
    let database = args.database.resolve(environment)?;
    let secrets = args.secrets.resolve(environment, &args.state.state_dir)?;
    let (tenant_name, default_cidr) = (&args.tenant.tenant, args.instances.default_cidr);
    let (db, _) = startup::database(&database).await?;
    let (tenant, created) = tenants::store::ensure(&db, tenant_name, default_cidr).await?;
    if created {
        tracing::info!(%tenant, name = tenant_name, "the tenant was created");
    }
    let spec = KeySpec {
        id: KeyId::new(),
        name: args.name.clone(),
        tenant,
        scopes: args.scope.clone(),
        limits: limits.map_or_else(|| serde_json::json!({}), rate_limit::stored),
        not_before: None,
        expires_at: None,
        created_by: None,
    };
    let key = create::create(&db, &KeyRing::new(&secrets), tenant, &spec, None).await?;
    print_key(key.context("the tenant vanished")?.key.expose_secret());
    Ok(ExitCode::SUCCESS)
}

#[allow(clippy::print_stdout, reason = "the one place where a key is shown, alone, so that a script can take it")]
fn print_key(key: &str) {
    println!("{key}");
}
