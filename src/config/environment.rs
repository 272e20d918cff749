//! `APP_ENV`, `RUST_LOG`, `APP_LOG_FORMAT`: variables of every subcommand.

use clap::Args;

use super::value::{either, value};

const LOG_FILTER_DEFAULT: &str = "info,actix_server=warn";

/// What every subcommand takes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Every subcommand")]
pub struct EnvironmentArgs {
    /// `development` or `production`. Production refuses generated secrets, the default database password and simulated
    /// backends.
    #[arg(long = "env", env = "APP_ENV", default_value = "development", value_name = "NAME", global = true,
          value_parser = either([("development", Environment::Development), ("production", Environment::Production)],
                                "production"))]
    pub environment: Environment,
    /// What is logged, in the filter syntax of tracing: LEVEL,CRATE=LEVEL. Bodies and SQL parameters are never logged.
    #[arg(long = "log", env = "RUST_LOG", default_value = LOG_FILTER_DEFAULT, value_name = "FILTER", global = true,
          value_parser = value("info,app=debug", "directives of tracing's `EnvFilter`",
                               |text| Ok(text.trim().to_owned())).or_default(LOG_FILTER_DEFAULT))]
    pub log_filter: String,
    /// Format of the log on standard error: `text` or `json`.
    #[arg(long, env = "APP_LOG_FORMAT", default_value = "text", value_name = "FORMAT", global = true,
          value_parser = either([("text", LogFormat::Text), ("json", LogFormat::Json)], "json"))]
    pub log_format: LogFormat,
}

/// Where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    /// A laptop: missing secrets are generated, and the default database password is accepted.
    Development,
    /// A deployment: it refuses to start with what is fit for a laptop only.
    Production,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text per event.
    Text,
    /// One JSON object per event.
    Json,
}
