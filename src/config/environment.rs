//! `APP_ENV`: `development` (the default) or `production`, which refuses what is only fit for a laptop.

use clap::Args;

use super::{ConfigError, setting};

const LOG_DEFAULT: &str = "info,actix_server=warn";

#[derive(Args, Clone, Debug)]
pub struct EnvironmentArgs {
    /// `development` or `production`; production refuses generated secrets, plain defaults and simulated backends.
    #[arg(long = "env", env = "APP_ENV", default_value = "development", value_name = "NAME", global = true)]
    app_env: String,
    /// What to log, in the syntax of tracing: LEVEL,CRATE=LEVEL.
    #[arg(long = "log", env = "RUST_LOG", default_value = LOG_DEFAULT, value_name = "FILTER", global = true)]
    log_filter: String,
    /// How to log: `text` or `json`.
    #[arg(long, env = "APP_LOG_FORMAT", default_value = "text", value_name = "FORMAT", global = true)]
    log_format: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    Development,
    Production,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl EnvironmentArgs {
    /// # Errors
    /// When it is neither.
    pub fn environment(&self) -> Result<Environment, ConfigError> {
        match self.app_env.as_str() {
            "development" => Ok(Environment::Development),
            "production" => Ok(Environment::Production),
            other => Err(setting("APP_ENV", other, "production")
                .wrong(format_args!("\"{other}\" is neither development nor production"))),
        }
    }

    /// What to log; empty is the default.
    pub fn log_filter(&self) -> &str {
        match self.log_filter.trim() {
            "" => LOG_DEFAULT,
            filter => filter,
        }
    }

    /// # Errors
    /// When it is neither.
    pub fn log_format(&self) -> Result<LogFormat, ConfigError> {
        match self.log_format.as_str() {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            other => {
                Err(setting("APP_LOG_FORMAT", other, "json")
                    .wrong(format_args!("\"{other}\" is neither text nor json")))
            }
        }
    }
}
