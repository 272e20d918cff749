//! The command line: subcommands and which settings each takes.

use clap::{Args, Parser, Subcommand};

use crate::config::{
    backend::BackendArgs,
    database::DatabaseArgs,
    environment::EnvironmentArgs,
    http::HttpArgs,
    identity::{IdentityArgs, KeyLimitArgs},
    instances::InstanceArgs,
    password::{DatabasePasswordArgs, RedisPasswordArgs},
    redis::RedisArgs,
    secrets::SecretArgs,
    worker::WorkerArgs,
};

/// A self-hosted control plane that turns `POST /instances` into a running, networked container.
///
/// Every option is also an environment variable, shown in brackets.
#[derive(Parser, Debug)]
#[command(name = "app", version, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub environment: EnvironmentArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Serve the HTTP API.
    Serve(Box<ServeArgs>),
    /// Claim jobs and run containers on this host.
    Work(Box<WorkArgs>),
    /// Apply pending database migrations; safe to run many times at once.
    Migrate(MigrateArgs),
    /// Manage API keys where there is none yet.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Manage tenants.
    #[command(subcommand)]
    Tenants(TenantsCommand),
    /// Make the secrets that production needs.
    #[command(subcommand)]
    Secrets(SecretsCommand),
    /// Exit 0 when the API on this machine is ready: for containers without a shell.
    Healthcheck(HealthcheckArgs),
    /// Serve and work in one process.
    Dev(Box<DevArgs>),
    /// Remove every container, network and volume of this cluster from this host.
    Purge(Box<PurgeArgs>),
}

#[derive(Args, Debug)]
pub struct ServeArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub redis: RedisArgs,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub instances: InstanceArgs,
    #[command(flatten)]
    pub secrets: SecretArgs,
    #[command(flatten)]
    pub identity: IdentityArgs,
    /// Where generated development secrets are kept.
    #[arg(long, env = "APP_STATE_DIR", default_value = ".app/state", value_name = "DIR")]
    pub state_dir: String,
    /// A job's lease, in milliseconds; the same as the workers'.
    #[arg(long, env = "APP_LEASE_MS", default_value = "30000", value_name = "MS")]
    pub lease_ms: String,
}

#[derive(Args, Debug)]
pub struct WorkArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub redis: RedisArgs,
    #[command(flatten)]
    pub worker: WorkerArgs,
    #[command(flatten)]
    pub backend: BackendArgs,
}

#[derive(Args, Debug)]
pub struct DevArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub redis: RedisArgs,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub instances: InstanceArgs,
    #[command(flatten)]
    pub secrets: SecretArgs,
    #[command(flatten)]
    pub identity: IdentityArgs,
    #[command(flatten)]
    pub worker: WorkerArgs,
    #[command(flatten)]
    pub backend: BackendArgs,
}

#[derive(Args, Debug)]
pub struct MigrateArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Change nothing; exit 1 when something is pending.
    #[arg(long, env = "APP_MIGRATE_CHECK", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, value_name = "BOOL")]
    pub check: String,
}

#[derive(Subcommand, Debug)]
pub enum KeysCommand {
    /// Make a key and print it, this once, alone on standard output. Creates the tenant when missing.
    Create(Box<KeysCreateArgs>),
}

#[derive(Subcommand, Debug)]
pub enum TenantsCommand {
    /// Refuse all keys of a tenant, everywhere, until it is resumed. What it runs goes on.
    Suspend(Box<TenantArgs>),
    /// Let a suspended tenant in again.
    Resume(Box<TenantArgs>),
}

#[derive(Args, Debug)]
pub struct TenantArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub redis: RedisArgs,
    #[command(flatten)]
    pub secrets: SecretArgs,
    /// The tenant's name.
    #[arg(long, env = "APP_TENANT", value_name = "NAME")]
    pub tenant: String,
    /// Where generated development secrets are kept.
    #[arg(long, env = "APP_STATE_DIR", default_value = ".app/state", value_name = "DIR")]
    pub state_dir: String,
}

#[derive(Subcommand, Debug)]
pub enum SecretsCommand {
    /// Write the secrets that are missing into APP_SECRETS_DIR, readable by their owner only, and the password files that
    /// are named. Those that are there stay.
    Init(SecretsInitArgs),
}

#[derive(Args, Debug)]
pub struct SecretsInitArgs {
    #[command(flatten)]
    pub secrets: SecretArgs,
    #[command(flatten)]
    pub database_password: DatabasePasswordArgs,
    #[command(flatten)]
    pub redis_password: RedisPasswordArgs,
    /// Where this host keeps its own state.
    #[arg(long, env = "APP_STATE_DIR", default_value = ".app/state", value_name = "DIR")]
    pub state_dir: String,
}

#[derive(Args, Debug)]
pub struct KeysCreateArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub instances: InstanceArgs,
    #[command(flatten)]
    pub secrets: SecretArgs,
    /// The tenant's name.
    #[arg(long, env = "APP_TENANT", value_name = "NAME")]
    pub tenant: String,
    /// What the key is called in lists.
    #[arg(long, env = "APP_KEY_NAME", value_name = "NAME")]
    pub name: String,
    /// What it may do, repeatable: instances:read|write, networks:read|write, keys:read|write, admin.
    #[arg(long, env = "APP_KEY_SCOPES", value_name = "SCOPE", value_delimiter = ',', required = true)]
    pub scope: Vec<String>,
    #[command(flatten)]
    pub limits: KeyLimitArgs,
    /// Where generated development secrets are kept.
    #[arg(long, env = "APP_STATE_DIR", default_value = ".app/state", value_name = "DIR")]
    pub state_dir: String,
}

#[derive(Args, Debug)]
pub struct HealthcheckArgs {
    /// The listener to ask: of this machine, by its port.
    #[arg(long, env = "APP_LISTEN", default_value = "0.0.0.0:8080", value_name = "ADDRESS:PORT")]
    pub listen: String,
    /// Ask a worker at this address instead; empty: the API.
    #[arg(long, env = "APP_HEALTHCHECK_WORKER", default_value = "", value_name = "ADDRESS:PORT")]
    pub worker: String,
}

#[derive(Args, Debug)]
pub struct PurgeArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub backend: BackendArgs,
    /// Do not ask.
    #[arg(long, env = "APP_PURGE_YES", default_value = "false", default_missing_value = "true", num_args = 0..=1,
          require_equals = true, value_name = "BOOL")]
    pub yes: String,
}
