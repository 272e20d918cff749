//! `app keys create`: the first key, and later ones from a shell.

use std::process::ExitCode;

use anyhow::{Context, bail};
use secrecy::ExposeSecret;

use crate::startup;
use crate::{
    cli::KeysCreateArgs,
    config::{environment::Environment, setting},
    core::{
        id::KeyId,
        identity::{Scope, api_key::KeyRing, create, rate_limit, store::KeySpec},
        instances::spec::is_label,
        tenants,
    },
};

pub async fn create(args: &KeysCreateArgs, environment: Environment) -> anyhow::Result<ExitCode> {
    let scopes = args
        .scope
        .iter()
        .map(|text| {
            let known = Scope::ALL.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(", ");
            text.parse::<Scope>().map_err(|_| {
                setting("APP_KEY_SCOPES", text, "admin").wrong(format_args!("\"{text}\" is not one of {known}"))
            })
        })
        .collect::<Result<Vec<Scope>, _>>()?;
    if !is_label(&args.tenant) {
        let tenant = setting("APP_TENANT", &args.tenant, "acme");
        bail!(tenant.wrong(format_args!("\"{}\" is not 1 to 63 of a-z, 0-9 and '-'", args.tenant)));
    }
    if args.name.trim().is_empty() || args.name.len() > 255 {
        bail!(setting("APP_KEY_NAME", &args.name, "first").wrong("must have 1 to 255 bytes"));
    }
    let limits = args.limits.resolve()?;
    let database = args.database.resolve(environment)?;
    let state_dir = setting("APP_STATE_DIR", &args.state_dir, "/var/lib/app").directory()?;
    let secrets = args.secrets.resolve(environment, &state_dir)?;
    let default_cidr = args.instances.resolve()?.default_cidr;
    let (db, _) = startup::database(&database).await?;
    let (tenant, created) = tenants::store::ensure(&db, &args.tenant, default_cidr).await?;
    if created {
        tracing::info!(%tenant, name = args.tenant, "the tenant was created");
    }
    let spec = KeySpec {
        id: KeyId::new(),
        name: args.name.clone(),
        tenant,
        scopes,
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
