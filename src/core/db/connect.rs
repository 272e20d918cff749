//! Opens connections to Postgres, for the pools and for the migrations.
//!
//! The options set here follow those of the URL, so that they override them. A connection to the primary is refused
//! with `DbError::ReadOnly` when its server takes no writes: the driver reads `transaction_read_only`, which is on
//! while a server is in recovery and where `default_transaction_read_only` is on. Of several hosts in a URL the first
//! one that takes writes is used.

use tokio_postgres::{
    Config,
    config::{SslMode, TargetSessionAttrs},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::DbError;
use crate::config::database::PostgresUrl;

/// The role of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Writes, and reads that must see every commit.
    Primary,
    /// Reads that may be somewhat old.
    Replica,
}

impl Role {
    /// Returns its name in metrics and log lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
        }
    }
}

/// Returns the configuration of a connection. `settings`: further server settings, each as `-c name=value`.
pub fn config(url: &PostgresUrl, role: Role, application: &str, settings: &str) -> Config {
    let mut config = url.config();
    // JIT compiles a plan anew for each execution: 120 of a claim's 125 ms with 33,000 queued jobs.
    let options = format!("{} -c jit=off {settings}", config.get_options().unwrap_or_default());
    config.application_name(application).options(options.trim());
    if role == Role::Primary {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    config
}

/// Returns the TLS connector for a URL that requires TLS: `require` verifies chain and name by the system's
/// authorities.
///
/// # Errors
/// `Unavailable` when the certificate authorities cannot be read.
pub fn tls(config: &Config) -> Result<Option<MakeRustlsConnect>, DbError> {
    if config.get_ssl_mode() != SslMode::Require {
        return Ok(None);
    }
    MakeRustlsConnect::with_native_certs()
        .map(|(connector, _)| Some(connector))
        .map_err(|error| DbError::Unavailable(format!("no certificate authorities: {error:?}")))
}
