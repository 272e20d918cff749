//! `app migrate`: applies the migrations that the schema lacks.

use std::process::ExitCode;

use crate::{cli::MigrateArgs, config::environment::Environment, core::db::migrate};

/// Applies pending migrations, or with `--check` lists them and exits with status 1 when there are any.
///
/// # Errors
/// An error of the configuration or of Postgres.
pub async fn run(args: &MigrateArgs, environment: Environment) -> anyhow::Result<ExitCode> {
    let database = args.database.resolve(environment)?;
    let mut client = migrate::connect(&database.primary, database.wait).await?;
    if args.check {
        let pending = migrate::pending(&mut client).await?;
        let code = if pending.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        report("pending", &pending);
        return Ok(code);
    }
    let applied = migrate::apply(&mut client).await?;
    report("applied", &applied);
    Ok(ExitCode::SUCCESS)
}

#[allow(clippy::print_stdout, reason = "the list of migrations is the command's output")]
fn report(state: &str, migrations: &[String]) {
    if migrations.is_empty() {
        println!("migrate: nothing {}", if state == "pending" { "pending" } else { "to do" });
    }
    for migration in migrations {
        println!("migrate: {state} {migration}");
    }
}
