//! `REDIS_URL`: the address of Redis, as `HOST:PORT`, a URL, or a unix socket.

use std::fmt;

use clap::Args;
use secrecy::{ExposeSecret, SecretString};

use super::{ConfigError, password::RedisPasswordArgs, value::value};

const EXAMPLE: &str = "redis://localhost:6379";

/// The Redis server.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Redis")]
pub struct RedisArgs {
    /// Address of Redis, version 7.0 or later with the policy noeviction: HOST:PORT,
    /// redis://[user:password@]host:port[/db], rediss://… (TLS) or unix:/path.
    #[arg(long, env = "REDIS_URL", default_value = "redis:6379", hide_env_values = true, value_name = "URL",
          value_parser = value(EXAMPLE, "`HOST`, `HOST:PORT`, a URL, or the path of a socket", RedisConfig::parse))]
    redis_url: RedisConfig,
    #[command(flatten)]
    password: RedisPasswordArgs,
}

/// The address of Redis; its `Debug` output contains no password.
#[derive(Clone)]
pub struct RedisConfig(fred::types::config::Config);

impl RedisConfig {
    /// Returns the client's configuration.
    pub fn fred(&self) -> fred::types::config::Config {
        self.0.clone()
    }

    /// Parses `HOST`, `HOST:PORT`, `redis://…`, `rediss://…`, `redis+unix:///path`, `unix:/path` or `/path`.
    ///
    /// # Errors
    /// A description of the mistake without any piece of the text, which may contain a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let url = if text.starts_with('/') {
            format!("redis+unix://{text}")
        } else if let Some(path) = text.strip_prefix("unix:") {
            format!("redis+unix:///{}", path.trim_start_matches('/'))
        } else if text.contains("://") {
            text.to_owned()
        } else {
            match text.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => format!("redis://{text}"),
                None if !text.is_empty() => format!("redis://{text}:6379"),
                _ => return Err("neither HOST:PORT nor a URL nor a socket".to_owned()),
            }
        };
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        if !["redis", "rediss", "redis+unix"].contains(&scheme) {
            // The scheme is not quoted: in a password that contains "://" it is a piece of the password.
            return Err("its scheme is neither redis:// nor rediss:// nor redis+unix://".to_owned());
        }
        fred::types::config::Config::from_url(&url)
            .map(Self)
            .map_err(|error| format!("not a usable URL ({})", error.details()))
    }

    /// Sets the password of the file when the URL has none.
    fn with_password(mut self, password: Option<&SecretString>) -> Self {
        if let Some(password) = password.filter(|_| self.0.password.is_none()) {
            self.0.password = Some(password.expose_secret().to_owned());
        }
        self
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.server.hosts())
    }
}

impl RedisArgs {
    /// Returns the address with its password.
    ///
    /// # Errors
    /// `ConfigError` when the password's file cannot be read.
    pub fn resolve(&self) -> Result<RedisConfig, ConfigError> {
        let password = self.password.read()?;
        Ok(self.redis_url.clone().with_password(password.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_form_is_accepted() {
        for text in [
            "redis:6379",
            "localhost",
            "redis://h:1/2",
            "rediss://u:p@h:1",
            "unix:/run/r.sock",
            "/run/r.sock",
            "redis+unix:///run/r.sock",
        ] {
            assert!(RedisConfig::parse(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn password_of_a_file_is_used_when_the_url_has_none() {
        let password = SecretString::from("from-the-file".to_owned());
        for (url, expected) in [("redis:6379", "from-the-file"), ("redis://u:own@h:1", "own")] {
            let config = RedisConfig::parse(url).expect(url).with_password(Some(&password));
            assert_eq!(config.fred().password.as_deref(), Some(expected));
        }
    }

    #[test]
    fn refused_text_is_not_repeated() {
        for text in ["", ":6379", "redis:port", "http://h:sesame@x", "redis://u:sesame@h:notaport"] {
            let problem = RedisConfig::parse(text).expect_err(text);

            assert!(!problem.contains("sesame"), "{problem}");
        }
    }
}
