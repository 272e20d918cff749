//! `DATABASE_URL`, `DATABASE_READ_URL`, `DATABASE_PASSWORD_FILE`, `DB_MAX_CONNS`, `DB_WAIT_SECONDS`.

use std::{fmt, net::IpAddr, time::Duration};

use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::config::{Host, SslMode};

use super::{ConfigError, environment::Environment, password::DatabasePasswordArgs, setting};

const EXAMPLE: &str = "postgresql://app:SECRET@localhost:5432/app or postgresql:///app?host=/run/postgresql&user=app";
const DEFAULT: &str = "postgresql://app:app@localhost:5432/app";

#[derive(Args, Clone)]
pub struct DatabaseArgs {
    /// The primary, as a postgresql:// URL (a socket: ?host=/directory). Beyond this machine, say sslmode=require or
    /// sslmode=disable.
    #[arg(long, env = "DATABASE_URL", default_value = DEFAULT, hide_env_values = true,
          value_name = "URL")]
    database_url: String,
    /// A streaming read replica for lists; empty: none.
    #[arg(long, env = "DATABASE_READ_URL", default_value = "", hide_env_values = true, value_name = "URL")]
    database_read_url: String,
    #[command(flatten)]
    password: DatabasePasswordArgs,
    /// Connections of this process to each of the two servers, at most.
    #[arg(long, env = "DB_MAX_CONNS", default_value = "20", value_name = "N")]
    db_max_conns: String,
    /// How long to wait at start for the database to answer, in seconds.
    #[arg(long, env = "DB_WAIT_SECONDS", default_value = "60", value_name = "SECONDS")]
    db_wait_seconds: String,
}

#[derive(Clone, Debug)]
pub struct DatabaseConfig {
    pub primary: PostgresUrl,
    pub replica: Option<PostgresUrl>,
    pub max_conns: usize,
    /// How long start-up waits for the primary.
    pub wait: Duration,
}

/// A checked connection URL; shows no password.
#[derive(Clone)]
pub struct PostgresUrl(tokio_postgres::Config);

impl PostgresUrl {
    pub fn config(&self) -> tokio_postgres::Config {
        self.0.clone()
    }

    /// # Errors
    /// `ConfigError` naming `variable`, without the URL's text.
    pub fn parse(variable: &'static str, text: &str, environment: Environment) -> Result<Self, ConfigError> {
        let setting = setting(variable, text, EXAMPLE);
        // libpq's stricter names; with rustls, `require` verifies the chain and the name.
        let text =
            text.replace("sslmode=verify-full", "sslmode=require").replace("sslmode=verify-ca", "sslmode=require");
        let mut config: tokio_postgres::Config = text.parse().map_err(|error: tokio_postgres::Error| {
            // Of what the parser says, only this quotes no piece of the text, which may be one of the password.
            let source = std::error::Error::source(&error).map(ToString::to_string);
            let known = source.filter(|reason| reason.starts_with("invalid value for option"));
            setting.wrong(format_args!(
                "not a usable URL ({})",
                known.as_deref().unwrap_or("an unknown option, or a character in it that must be written %XX")
            ))
        })?;
        let plain = config.get_user() == Some("app") && config.get_password() == Some(b"app");
        if plain && environment == Environment::Production {
            return Err(setting.wrong("has the user and password of the development default"));
        }
        if config.get_hosts().is_empty() {
            return Err(setting.wrong("names no host"));
        }
        if config.get_ssl_mode() == SslMode::Prefer {
            // `prefer` means plaintext whenever somebody in between wishes so: it has to be said.
            let here = config.get_hosts().iter().all(is_local);
            if !here && environment == Environment::Production {
                return Err(setting.wrong("leaves this machine without saying sslmode=require or sslmode=disable"));
            }
            config.ssl_mode(SslMode::Disable);
        }
        Ok(Self(config))
    }

    /// With the password of its file, where the URL has none.
    fn with_password(mut self, password: Option<&SecretString>) -> Self {
        if let Some(password) = password.filter(|_| self.0.get_password().is_none()) {
            self.0.password(password.expose_secret());
        }
        self
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
        write!(f, "{:?}/{}", self.0.get_hosts(), self.0.get_dbname().unwrap_or_default())
    }
}

impl DatabaseArgs {
    /// # Errors
    /// The first setting that is wrong.
    pub fn resolve(&self, environment: Environment) -> Result<DatabaseConfig, ConfigError> {
        if environment == Environment::Production && self.database_url == DEFAULT {
            return Err(setting("DATABASE_URL", "", EXAMPLE).wrong("must be set when APP_ENV=production"));
        }
        let password = self.password.read()?;
        let url = |variable, text| {
            PostgresUrl::parse(variable, text, environment).map(|url| url.with_password(password.as_ref()))
        };
        let primary = url("DATABASE_URL", self.database_url.as_str())?;
        let replica = (!self.database_read_url.trim().is_empty())
            .then(|| url("DATABASE_READ_URL", self.database_read_url.as_str()))
            .transpose()?;
        let max_conns = setting("DB_MAX_CONNS", &self.db_max_conns, "20").between(2, 1000)?;
        let wait = setting("DB_WAIT_SECONDS", &self.db_wait_seconds, "60").between(0, 3600)?;
        Ok(DatabaseConfig { primary, replica, max_conns, wait: Duration::from_secs(wait) })
    }
}

impl fmt::Debug for DatabaseArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseArgs").field("db_max_conns", &self.db_max_conns).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, environment: Environment) -> Result<PostgresUrl, ConfigError> {
        PostgresUrl::parse("DATABASE_URL", text, environment)
    }

    #[test]
    fn urls_of_hosts_and_sockets_are_taken_and_show_no_password() {
        for url in ["postgresql://u:sesame@localhost/db", "postgresql:///db?host=/run/pg&user=u&password=sesame"] {
            let parsed = parse(url, Environment::Production).expect(url);
            assert!(!format!("{parsed:?}").contains("sesame"));
        }
    }

    #[test]
    fn a_bad_url_is_refused_without_repeating_it() {
        let error = parse("postgresql://u:sesame@db/x?sslmode=nonsense", Environment::Development).expect_err("bad");
        assert!(error.to_string().starts_with("DATABASE_URL: "), "{error}");
        assert!(!error.to_string().contains("sesame"), "{error}");
    }

    #[test]
    fn a_password_from_a_file_is_for_urls_without_one() {
        let password = SecretString::from("from-the-file".to_owned());
        for (url, is) in [("postgresql://u@h/db", "from-the-file"), ("postgresql://u:own@h/db", "own")] {
            let url = parse(url, Environment::Development).expect(url).with_password(Some(&password));
            assert_eq!(url.config().get_password(), Some(is.as_bytes()));
        }
    }

    #[test]
    fn production_refuses_the_default_password_wherever_it_leads() {
        for url in ["postgresql://app:app@localhost/x", "postgresql://app:app@db/x?sslmode=disable"] {
            assert!(parse(url, Environment::Production).is_err(), "{url}");
            assert!(parse(url, Environment::Development).is_ok(), "{url}");
        }
    }

    #[test]
    fn production_demands_a_word_about_tls_beyond_this_machine() {
        let url = "postgresql://u:p@db.example/x";
        assert!(parse(url, Environment::Production).is_err());
        assert!(parse(url, Environment::Development).is_ok());
        for mode in ["require", "verify-full", "disable"] {
            assert!(parse(&format!("{url}?sslmode={mode}"), Environment::Production).is_ok(), "{mode}");
        }
    }
}
