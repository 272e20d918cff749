//! `app keys create`: creates a key from a shell, the first one above all, by the rules of `POST /keys`.

use std::{process::ExitCode, sync::Arc};

use anyhow::bail;
use secrecy::ExposeSecret;
use time::OffsetDateTime;

use crate::{
    cli::KeysCreateArgs,
    config::{ConfigError, environment::Environment, identity::RateLimit, setting},
    core::{
        identity::{
            Creator, KeyCreator,
            api_key::KeyRing,
            draft::{KeyDraft, LimitsDraft},
        },
        instances::spec::is_label,
        invalid::Invalid,
        tenants::TenantService,
    },
    startup,
};

/// Creates the key and, when missing, its tenant; prints the key alone on standard output.
///
/// # Errors
/// The first setting that is wrong; then nothing was created. Or what the database says.
pub async fn create(args: &KeysCreateArgs, environment: Environment) -> anyhow::Result<ExitCode> {
    let limits = args.limits.resolve()?;
    let draft = KeyDraft {
        name: args.name.clone(),
        scopes: args.scope.clone(),
        limits: limits.map(|limit| LimitsDraft { rps: limit.rps, burst: limit.burst }),
        ..KeyDraft::default()
    };
    let spec = draft.validate(OffsetDateTime::now_utc()).map_err(|wrong| setting_error(args, &wrong))?;
    if !is_label(&args.tenant) {
        let tenant = setting("APP_TENANT", &args.tenant, "acme");
        bail!(tenant.wrong(format_args!("\"{}\" is not 1 to 63 of a-z, 0-9 and '-'", args.tenant)));
    }
    let database = args.database.resolve(environment)?;
    let state_dir = setting("APP_STATE_DIR", &args.state_dir, "/var/lib/app").directory()?;
    let secrets = args.secrets.resolve(environment, &state_dir)?;
    let default_cidr = args.instances.resolve()?.default_cidr;
    let (db, _) = startup::database(&database).await?;
    let tenant = TenantService::new(db.clone()).ensure(&args.tenant, default_cidr).await?.id;
    // What other keys may do without a limit of their own does not matter here: an operator may grant anything.
    let general = RateLimit { rps: 0.0, burst: 1 };
    let creator = KeyCreator::new(db, Arc::new(KeyRing::new(&secrets)), general);
    let created = creator.create(Creator::Operator(tenant), spec, None).await?;
    print_key(created.key.expose_secret());
    Ok(ExitCode::SUCCESS)
}

/// Names the variable of the first field that is wrong.
fn setting_error(args: &KeysCreateArgs, wrong: &[Invalid]) -> ConfigError {
    let first = wrong.first().map_or(("", ""), |first| (first.pointer.as_str(), first.detail.as_str()));
    match first {
        ("/name", detail) => setting("APP_KEY_NAME", &args.name, "first").wrong(detail),
        ("/limits/rps", detail) => setting("APP_KEY_LIMIT_RPS", "", "5").wrong(detail),
        ("/limits/burst", detail) => setting("APP_KEY_LIMIT_BURST", "", "20").wrong(detail),
        (pointer, detail) => {
            let at = pointer.strip_prefix("/scopes/").and_then(|at| at.parse::<usize>().ok());
            let text = at.and_then(|at| args.scope.get(at)).map_or("", String::as_str);
            setting("APP_KEY_SCOPES", text, "admin").wrong(format_args!("\"{text}\" {detail}"))
        }
    }
}

#[allow(clippy::print_stdout, reason = "the key is this command's result, alone, so that a script can read it")]
fn print_key(key: &str) {
    println!("{key}");
}
