//! `APP_ENV`: `development` (the default) or `production`, which refuses what is only fit for a laptop.

use clap::Args;

use super::{ConfigError, setting};

#[derive(Args, Clone, Debug)]
pub struct EnvironmentArgs {
    /// `development` or `production`; production refuses generated secrets, plain defaults and simulated backends.
    #[arg(long = "env", env = "APP_ENV", default_value = "development", value_name = "NAME", global = true)]
    app_env: String,
    /// How to log: `text` or `json`. What to log is set by RUST_LOG (default `info`).
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
