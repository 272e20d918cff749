//! One file per subcommand: resolves its configuration, builds the parts it needs, and waits for them.

mod config;
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
    cli::{Cli, Command, ConfigCommand, KeysCommand, SecretsCommand, TenantsCommand},
    config::ConfigError,
    telemetry,
};

/// Runs the subcommand to its end.
///
/// # Errors
/// The error that ended it, to be printed as one line on standard error.
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let environment = cli.environment.environment;
    telemetry::log(&cli.environment.log_filter, cli.environment.log_format)
        .map_err(|error| ConfigError::new("RUST_LOG", error, "info,app=debug"))?;
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
        Command::Config(ConfigCommand::Docs) => Ok(config::docs()),
    }
}
