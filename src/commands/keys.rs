//! `app keys create`: creates a key from a shell, the first one above all, by the rules of `POST /keys`.

use std::{process::ExitCode, sync::Arc};

use secrecy::ExposeSecret;
use time::OffsetDateTime;

use crate::{
    cli::KeysCreateArgs,
    config::{ConfigError, environment::Environment, identity::RateLimit},
    core::{
        identity::{
            Creator, KeyCreator,
            api_key::KeyRing,
            draft::{KeyDraft, LimitsDraft},
        },
        invalid::Invalid,
        tenants::TenantService,
    },
    startup,
};

/// Creates the key and, when missing, its tenant; prints the key alone on standard output.
///
/// # Errors
/// The first setting that is wrong, in which case nothing was created, or the error of the database.
pub async fn create(args: &KeysCreateArgs, environment: Environment) -> anyhow::Result<ExitCode> {
    let limits = args.limits.resolve()?;
    let draft = KeyDraft {
        name: args.name.clone(),
        scopes: args.scope.iter().map(ToString::to_string).collect(),
        limits: limits.map(|limit| LimitsDraft { rps: limit.rps, burst: limit.burst }),
        ..KeyDraft::default()
    };
    let spec = draft.validate(OffsetDateTime::now_utc()).map_err(|wrong| config_error(&wrong))?;
    let database = args.database.resolve(environment)?;
    let secrets = args.secrets.resolve(environment, &args.state.state_dir)?;
    let (db, _) = startup::database(&database).await?;
    let tenants = TenantService::new(db.clone());
    let tenant = tenants.ensure(&args.tenant.tenant, args.instances.default_cidr).await?.id;
    // The general limit of keys does not matter here: an operator may grant anything.
    let general = RateLimit { rps: 0.0, burst: 1 };
    let creator = KeyCreator::new(db, Arc::new(KeyRing::new(&secrets)), general);
    let created = creator.create(Creator::Operator(tenant), spec, None).await?;
    print_key(created.key.expose_secret());
    Ok(ExitCode::SUCCESS)
}

/// Names the variable of the first field that is wrong.
fn config_error(wrong: &[Invalid]) -> ConfigError {
    let (pointer, detail) = wrong.first().map_or(("", ""), |first| (first.pointer.as_str(), first.detail.as_str()));
    match pointer {
        "/name" => ConfigError::new("APP_KEY_NAME", detail, "first"),
        "/limits/rps" => ConfigError::new("APP_KEY_LIMIT_RPS", detail, "5"),
        "/limits/burst" => ConfigError::new("APP_KEY_LIMIT_BURST", detail, "20"),
        _ => ConfigError::new("APP_KEY_SCOPES", detail, "admin"),
    }
}

#[allow(clippy::print_stdout, reason = "the key is this command's result, alone, so that a script can read it")]
fn print_key(key: &str) {
    println!("{key}");
}
