//! One composition root per subcommand: reads settings, wires parts, waits. Decides nothing else.

mod dev;
mod healthcheck;
mod keys;
mod migrate;

mod purge;
mod secrets;
mod serve;
mod tenants;
mod work;

use std::process::ExitCode;

use crate::{
    cli::{Cli, Command, KeysCommand, SecretsCommand, TenantsCommand},
    config::setting,
    telemetry,
};

/// Runs the subcommand.
///
/// # Errors
/// What stopped it, for one line on standard error.
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let environment = cli.environment.environment()?;
    let filter = cli.environment.log_filter();
    telemetry::log(filter, cli.environment.log_format()?)
        .map_err(|error| setting("RUST_LOG", filter, "info,app=debug").wrong(error))?;
    match cli.command {
        Command::Serve(args) => serve::run(&args, environment).await,
        Command::Work(args) => work::run(&args, environment).await,
        Command::Migrate(args) => migrate::run(&args, environment).await,
        Command::Keys(KeysCommand::Create(args)) => keys::create(&args, environment).await,
        Command::Tenants(TenantsCommand::Suspend(args)) => tenants::suspend(&args, environment, true).await,
        Command::Tenants(TenantsCommand::Resume(args)) => tenants::suspend(&args, environment, false).await,
        Command::Secrets(SecretsCommand::Init(args)) => secrets::init(&args),
        Command::Healthcheck(args) => healthcheck::run(&args).await,
        Command::Dev(args) => dev::run(&args, environment).await,
        Command::Purge(args) => purge::run(&args, environment).await,
    }
}
