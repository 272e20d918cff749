//! `DATABASE_URL`, `DATABASE_READ_URL`, `DB_MAX_CONNS`, `DB_WAIT_SECONDS`: the two Postgres servers.

use std::{fmt, net::IpAddr, time::Duration};

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::config::{Host, SslMode};

use super::{
    ConfigError,
    environment::Environment,
    password::DatabasePasswordArgs,
    value::{Optional, Value, number, seconds, value},
};

const EXAMPLE: &str = "postgresql://app:SECRET@localhost:5432/app or postgresql:///app?host=/run/postgresql&user=app";
const DEFAULT: &str = "postgresql://app:app@localhost:5432/app";

/// The Postgres servers.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Postgres")]
pub struct DatabaseArgs {
    /// URL of the primary, which must take writes: postgresql://…, or a socket with ?host=/directory. For a server beyond
    /// this machine it must contain sslmode=require or sslmode=disable.
    #[arg(long, env = "DATABASE_URL", default_value = DEFAULT, hide_env_values = true, value_name = "URL",
          value_parser = url())]
    database_url: PostgresUrl,
    /// URL of a streaming read replica, which serves lists; empty: none. All replicas of the API have one, or none has.
    #[arg(long, env = "DATABASE_READ_URL", default_value = "", hide_env_values = true, value_name = "URL",
          value_parser = url().optional())]
    database_read_url: Optional<PostgresUrl>,
    #[command(flatten)]
    password: DatabasePasswordArgs,
    /// Largest number of connections of one process to each of the two servers.
    #[arg(long, env = "DB_MAX_CONNS", default_value = "20", value_name = "N",
          value_parser = number(2_usize, 1000, "20"))]
    db_max_conns: usize,
    /// How long the start waits for the database to answer and for its migrations, in seconds.
    #[arg(long, env = "DB_WAIT_SECONDS", default_value = "60", value_name = "SECONDS",
          value_parser = seconds(0, 3600, "60"))]
    db_wait_seconds: Duration,
}

/// The Postgres servers, checked.
#[derive(Clone, Debug)]
pub struct DatabaseConfig {
    /// The server that takes writes.
    pub primary: PostgresUrl,
    /// A streaming replica.
    pub replica: Option<PostgresUrl>,
    /// Largest number of connections to each server.
    pub max_conns: usize,
    /// How long the start waits for the primary.
    pub wait: Duration,
}

/// A connection URL; its `Debug` output contains no password.
#[derive(Clone)]
pub struct PostgresUrl {
    config: tokio_postgres::Config,
    is_default: bool,
    /// Whether the URL says nothing about TLS, which `config` then does not use.
    leaves_tls_open: bool,
}

impl PostgresUrl {
    /// Returns the driver's configuration.
    pub fn config(&self) -> tokio_postgres::Config {
        self.config.clone()
    }

    /// Parses a URL or a connection string.
    ///
    /// # Errors
    /// A description of the mistake without any piece of the text, which may contain a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let is_default = text == DEFAULT;
        // libpq's stricter names; with rustls, `require` verifies the chain and the name.
        let text =
            text.replace("sslmode=verify-full", "sslmode=require").replace("sslmode=verify-ca", "sslmode=require");
        let mut config: tokio_postgres::Config = text.parse().map_err(|error: tokio_postgres::Error| {
            // Of the parser's messages only this one quotes no piece of the text, which may be one of the password.
            let source = std::error::Error::source(&error).map(ToString::to_string);
            let known = source.filter(|reason| reason.starts_with("invalid value for option"));
            let reason = known.as_deref().unwrap_or("an unknown option, or a character in it that must be written %XX");
            format!("not a usable URL ({reason})")
        })?;
        if config.get_hosts().is_empty() {
            return Err("names no host".to_owned());
        }
        // With `prefer`, the driver's default, anyone on the path can force plaintext; so the URL has to choose TLS.
        let leaves_tls_open = config.get_ssl_mode() == SslMode::Prefer;
        if leaves_tls_open {
            config.ssl_mode(SslMode::Disable);
        }
        Ok(Self { config, is_default, leaves_tls_open })
    }

    /// Checks the URL against the environment, and adds the password of the file when the URL has none.
    fn resolve(
        mut self,
        variable: &'static str,
        environment: Environment,
        password: Option<&SecretString>,
    ) -> Result<Self, ConfigError> {
        let refuse = |problem| Err(ConfigError::new(variable, problem, EXAMPLE));
        let in_production = environment == Environment::Production;
        let has_default_password = self.config.get_user() == Some("app") && self.config.get_password() == Some(b"app");
        if in_production && self.is_default {
            return refuse("must be set when APP_ENV=production");
        }
        if in_production && has_default_password {
            return refuse("has the user and password of the development default");
        }
        let is_on_this_machine = self.config.get_hosts().iter().all(is_local);
        if in_production && self.leaves_tls_open && !is_on_this_machine {
            return refuse("leaves this machine without saying sslmode=require or sslmode=disable");
        }
        if let Some(password) = password.filter(|_| self.config.get_password().is_none()) {
            self.config.password(password.expose_secret());
        }
        Ok(self)
    }
}

fn is_local(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()),
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.config.get_hosts(), self.config.get_dbname().unwrap_or_default())
    }
}

fn url() -> Value<PostgresUrl> {
    value(EXAMPLE, "a URL or a connection string of libpq", PostgresUrl::parse)
}

impl DatabaseArgs {
    /// Returns the servers.
    ///
    /// # Errors
    /// `ConfigError` when production is given the default password or a URL that leaves TLS open, or when the password's
    /// file cannot be read.
    pub fn resolve(&self, environment: Environment) -> Result<DatabaseConfig, ConfigError> {
        let password = self.password.read()?;
        let resolve = |variable, url: &PostgresUrl| url.clone().resolve(variable, environment, password.as_ref());
        let primary = resolve("DATABASE_URL", &self.database_url)?;
        let replica = self.database_read_url.as_ref().map(|url| resolve("DATABASE_READ_URL", url)).transpose()?;
        Ok(DatabaseConfig { primary, replica, max_conns: self.db_max_conns, wait: self.db_wait_seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str, environment: Environment) -> Result<PostgresUrl, ConfigError> {
        PostgresUrl::parse(text).expect(text).resolve("DATABASE_URL", environment, None)
    }

    #[test]
    fn url_of_host_or_socket_shows_no_password() {
        for url in ["postgresql://u:sesame@localhost/db", "postgresql:///db?host=/run/pg&user=u&password=sesame"] {
            let parsed = resolve(url, Environment::Production).expect(url);

            assert!(!format!("{parsed:?}").contains("sesame"));
        }
    }

    #[test]
    fn refused_url_is_not_repeated() {
        let problem = PostgresUrl::parse("postgresql://u:sesame@db/x?sslmode=nonsense").expect_err("no such mode");

        assert!(problem.contains("sslmode") && !problem.contains("sesame"), "{problem}");
    }

    #[test]
    fn password_of_a_file_is_used_when_the_url_has_none() {
        let password = SecretString::from("from-the-file".to_owned());
        for (url, expected) in [("postgresql://u@h/db", "from-the-file"), ("postgresql://u:own@h/db", "own")] {
            let parsed = PostgresUrl::parse(url).expect(url);

            let resolved = parsed.resolve("DATABASE_URL", Environment::Development, Some(&password)).expect(url);

            assert_eq!(resolved.config().get_password(), Some(expected.as_bytes()));
        }
    }

    #[test]
    fn production_refuses_the_default_password_of_any_server() {
        for url in [DEFAULT, "postgresql://app:app@localhost/x", "postgresql://app:app@db/x?sslmode=disable"] {
            assert!(resolve(url, Environment::Production).is_err(), "{url}");
            assert!(resolve(url, Environment::Development).is_ok(), "{url}");
        }
    }

    #[test]
    fn production_requires_a_choice_of_tls_beyond_this_machine() {
        let url = "postgresql://u:p@db.example/x";

        assert!(resolve(url, Environment::Production).is_err());
        assert!(resolve(url, Environment::Development).is_ok());
        for mode in ["require", "verify-full", "disable"] {
            assert!(resolve(&format!("{url}?sslmode={mode}"), Environment::Production).is_ok(), "{mode}");
        }
    }
}
