//! `app migrate`: brings the schema up to this binary's.

use std::process::ExitCode;

use crate::{
    cli::MigrateArgs,
    config::{environment::Environment, setting},
    core::db::migrate,
};

pub async fn run(args: &MigrateArgs, environment: Environment) -> anyhow::Result<ExitCode> {
    let database = args.database.resolve(environment)?;
    let check = setting("APP_MIGRATE_CHECK", &args.check, "true").flag()?;
    let mut client = migrate::connect(&database.primary, database.wait).await?;
    if check {
        let pending = migrate::pending(&mut client).await?;
        let code = if pending.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        report("pending", &pending);
        return Ok(code);
    }
    let applied = migrate::apply(&mut client).await?;
    report("applied", &applied);
    Ok(ExitCode::SUCCESS)
}

#[allow(clippy::print_stdout, reason = "what a deployment's log should show")]
fn report(what: &str, migrations: &[String]) {
    if migrations.is_empty() {
        println!("migrate: nothing {}", if what == "pending" { "pending" } else { "to do" });
    }
    for migration in migrations {
        println!("migrate: {what} {migration}");
    }
}
