//! The command line: the subcommands, and which variables each of them reads.
//!
//! Options that several subcommands take are declared in `config`; those of one subcommand are declared here.

use std::net::SocketAddr;

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};

use crate::{
    config::{
        ConfigError,
        backend::BackendArgs,
        database::DatabaseArgs,
        environment::EnvironmentArgs,
        http::{HttpConfig, ListenArgs},
        identity::{IdentityArgs, KeyLimitArgs},
        instances::InstanceConfig,
        lease::LeaseArgs,
        page,
        password::{DatabasePasswordArgs, RedisPasswordArgs},
        redis::RedisArgs,
        secrets::SecretArgs,
        state_dir::StateDirArgs,
        value::{Optional, Value, address, flag, value},
        worker::WorkerArgs,
    },
    core::{identity::Scope, instances::spec::is_label},
};

/// A self-hosted control plane that turns `POST /instances` into a running, networked container.
///
/// Every option is also an environment variable, shown in brackets; the option wins. All of them are in
/// docs/configuration.md.
#[derive(Parser, Debug)]
#[command(name = "app", version, max_term_width = 110, hide_possible_values = true)]
pub struct Cli {
    /// The options of every subcommand.
    #[command(flatten)]
    pub environment: EnvironmentArgs,
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Parses the command line and the environment. Ends the process after `--help` and `--version`, and when the command
    /// line does not fit the options.
    ///
    /// # Errors
    /// `ConfigError` when the value of a variable or option is refused.
    pub fn from_arguments() -> Result<Self, ConfigError> {
        Self::try_parse().map_err(|error| match ConfigError::of_clap(&error) {
            Some(wrong) => wrong.clone(),
            None => error.exit(),
        })
    }

    /// Returns the text of `docs/configuration.md`.
    pub fn configuration_page() -> String {
        let mut command = Self::command();
        command.build();
        page::render(&command)
    }
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Runs a replica of the HTTP API.
    Serve(Box<ServeArgs>),
    /// Runs the worker of this host: claims jobs and manages containers.
    Work(Box<WorkArgs>),
    /// Applies pending database migrations. Several processes may run it at once.
    Migrate(Box<MigrateArgs>),
    /// Creates API keys without the API, such as the first one.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Suspends and resumes tenants.
    #[command(subcommand)]
    Tenants(TenantsCommand),
    /// Creates the secrets that production needs.
    #[command(subcommand)]
    Secrets(SecretsCommand),
    /// Exits with status 0 when the API of this machine is ready; for containers without a shell.
    Healthcheck(HealthcheckArgs),
    /// Runs the API and a worker in one process, for development.
    Dev(Box<DevArgs>),
    /// Removes every container, network and volume of this cluster from this host.
    Purge(Box<PurgeArgs>),
    /// Documents the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// Options of `app serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// The Postgres servers.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The Redis server.
    #[command(flatten)]
    pub redis: RedisArgs,
    /// The API's listener.
    #[command(flatten)]
    pub http: HttpConfig,
    /// Ports and addresses that the API assigns.
    #[command(flatten)]
    pub instances: InstanceConfig,
    /// The secrets behind API keys.
    #[command(flatten)]
    pub secrets: SecretArgs,
    /// The caching and the rate limits of keys.
    #[command(flatten)]
    pub identity: IdentityArgs,
    /// The directory of this host's files.
    #[command(flatten)]
    pub state: StateDirArgs,
    /// The lease of jobs, which every process rescues when it has expired.
    #[command(flatten)]
    pub lease: LeaseArgs,
}

/// Options of `app work`.
#[derive(Args, Debug)]
pub struct WorkArgs {
    /// The Postgres servers.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The Redis server.
    #[command(flatten)]
    pub redis: RedisArgs,
    /// The worker.
    #[command(flatten)]
    pub worker: WorkerArgs,
    /// The backends that run the containers.
    #[command(flatten)]
    pub backend: BackendArgs,
}

/// Options of `app dev`: those of `app serve` and of `app work`.
#[derive(Args, Debug)]
pub struct DevArgs {
    /// The Postgres servers.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The Redis server.
    #[command(flatten)]
    pub redis: RedisArgs,
    /// The API's listener.
    #[command(flatten)]
    pub http: HttpConfig,
    /// Ports and addresses that the API assigns.
    #[command(flatten)]
    pub instances: InstanceConfig,
    /// The secrets behind API keys.
    #[command(flatten)]
    pub secrets: SecretArgs,
    /// The caching and the rate limits of keys.
    #[command(flatten)]
    pub identity: IdentityArgs,
    /// The worker.
    #[command(flatten)]
    pub worker: WorkerArgs,
    /// The backends that run the containers.
    #[command(flatten)]
    pub backend: BackendArgs,
}

/// Options of `app migrate`.
#[derive(Args, Debug)]
pub struct MigrateArgs {
    /// The Postgres servers.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Changes nothing; exits with status 1 when a migration is pending.
    #[arg(long, env = "APP_MIGRATE_CHECK", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, value_name = "BOOL", action = ArgAction::Set, value_parser = flag("true"),
          help_heading = page::COMMANDS)]
    pub check: bool,
}

/// The subcommands of `app keys`.
#[derive(Subcommand, Debug)]
pub enum KeysCommand {
    /// Creates an API key and prints it to standard output, which is the only time that it is shown. Creates the tenant
    /// when it does not exist.
    Create(Box<KeysCreateArgs>),
}

/// The subcommands of `app tenants`.
#[derive(Subcommand, Debug)]
pub enum TenantsCommand {
    /// Refuses all keys of a tenant on every replica until the tenant is resumed. Its instances go on running.
    Suspend(Box<TenantArgs>),
    /// Accepts the keys of a suspended tenant again.
    Resume(Box<TenantArgs>),
}

/// The name of a tenant.
#[derive(Args, Debug)]
pub struct TenantNameArgs {
    /// Name of the tenant.
    #[arg(long, env = "APP_TENANT", value_name = "NAME", value_parser = tenant_name(), help_heading = page::COMMANDS)]
    pub tenant: String,
}

/// Options of `app tenants suspend` and `app tenants resume`.
#[derive(Args, Debug)]
pub struct TenantArgs {
    /// The Postgres servers.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The Redis server.
    #[command(flatten)]
    pub redis: RedisArgs,
    /// The secrets behind API keys.
    #[command(flatten)]
    pub secrets: SecretArgs,
    /// The tenant.
    #[command(flatten)]
    pub name: TenantNameArgs,
    /// The directory of this host's files.
    #[command(flatten)]
    pub state: StateDirArgs,
}

/// The subcommands of `app secrets`.
#[derive(Subcommand, Debug)]
pub enum SecretsCommand {
    /// Creates the missing files of APP_SECRETS_DIR, readable by their owner only, and the missing password files that
    /// are named. Files that exist are left as they are.
    Init(SecretsInitArgs),
}

/// Options of `app secrets init`.
#[derive(Args, Debug)]
pub struct SecretsInitArgs {
    /// The secrets behind API keys.
    #[command(flatten)]
    pub secrets: SecretArgs,
    /// The file with the password of Postgres.
    #[command(flatten)]
    pub database_password: DatabasePasswordArgs,
    /// The file with the password of Redis.
    #[command(flatten)]
    pub redis_password: RedisPasswordArgs,
    /// The directory of this host's files.
    #[command(flatten)]
    pub state: StateDirArgs,
}

/// Options of `app keys create`.
#[derive(Args, Debug)]
pub struct KeysCreateArgs {
    /// The Postgres servers.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The network of a tenant that is created.
    #[command(flatten)]
    pub instances: InstanceConfig,
    /// The secrets behind API keys.
    #[command(flatten)]
    pub secrets: SecretArgs,
    /// The tenant of the key.
    #[command(flatten)]
    pub tenant: TenantNameArgs,
    /// Name of the key in lists.
    #[arg(long, env = "APP_KEY_NAME", value_name = "NAME", value_parser = key_name(), help_heading = page::COMMANDS)]
    pub name: String,
    /// What the key may do, repeatable: instances:read|write, networks:read|write, keys:read|write, admin.
    #[arg(long, env = "APP_KEY_SCOPES", value_name = "SCOPE", value_delimiter = ',', required = true,
          value_parser = scope(), help_heading = page::COMMANDS)]
    pub scope: Vec<Scope>,
    /// The key's own limit.
    #[command(flatten)]
    pub limits: KeyLimitArgs,
    /// The directory of this host's files.
    #[command(flatten)]
    pub state: StateDirArgs,
}

/// Options of `app healthcheck`.
#[derive(Args, Debug)]
pub struct HealthcheckArgs {
    /// The API's listener.
    #[command(flatten)]
    pub api: ListenArgs,
    /// Checks the worker at this address; empty: checks the API.
    #[arg(long, env = "APP_HEALTHCHECK_WORKER", default_value = "", value_name = "ADDRESS:PORT",
          value_parser = address("127.0.0.1:9091").optional(), help_heading = page::COMMANDS)]
    pub worker: Optional<SocketAddr>,
}

/// Options of `app purge`.
#[derive(Args, Debug)]
pub struct PurgeArgs {
    /// The Postgres servers.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The backends that run the containers.
    #[command(flatten)]
    pub backend: BackendArgs,
    /// Removes without asking first.
    #[arg(long, env = "APP_PURGE_YES", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, value_name = "BOOL", action = ArgAction::Set, value_parser = flag("true"),
          help_heading = page::COMMANDS)]
    pub yes: bool,
}

/// The subcommands of `app config`.
#[derive(Subcommand, Debug)]
pub enum ConfigCommand {
    /// Prints docs/configuration.md: every variable with its meaning, default, bounds and an example.
    Docs,
}

fn tenant_name() -> Value<String> {
    value("acme", "1 to 63 of `a-z`, `0-9` and `-`, without `-` at either end", |text| {
        if is_label(text) {
            return Ok(text.to_owned());
        }
        Err(format!("\"{text}\" is not 1 to 63 of a-z, 0-9 and '-'"))
    })
}

fn key_name() -> Value<String> {
    value("first", "1 to 255 bytes", |text| {
        if !text.trim().is_empty() && text.len() <= 255 {
            return Ok(text.to_owned());
        }
        Err("must have 1 to 255 bytes".to_owned())
    })
}

fn scope() -> Value<Scope> {
    let known = Scope::ALL.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(", ");
    value("admin", format!("{known}; separated by commas"), move |text| {
        text.parse().map_err(|_| format!("\"{text}\" is not one of {known}"))
    })
}
