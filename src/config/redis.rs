//! `REDIS_URL`: `HOST:PORT`, `redis://…`, `rediss://…` (TLS), or a unix socket (`unix:/path`, `redis+unix:///path`, `/path`),
//! and `REDIS_PASSWORD_FILE`.

use std::fmt;

use clap::Args;
use secrecy::{ExposeSecret, SecretString};

use super::{ConfigError, password::RedisPasswordArgs, setting};

#[derive(Args, Clone)]
pub struct RedisArgs {
    /// HOST:PORT, redis://[user:password@]host:port[/db], rediss://… or unix:/path.
    #[arg(long, env = "REDIS_URL", default_value = "redis:6379", hide_env_values = true, value_name = "URL")]
    redis_url: String,
    #[command(flatten)]
    password: RedisPasswordArgs,
}

/// A checked Redis address; shows no password.
#[derive(Clone)]
pub struct RedisConfig(fred::types::config::Config);

impl RedisConfig {
    pub fn fred(&self) -> fred::types::config::Config {
        self.0.clone()
    }

    /// # Errors
    /// `ConfigError`, without the URL's text.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let setting = setting("REDIS_URL", text, "redis://localhost:6379");
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
                _ => return Err(setting.wrong("neither HOST:PORT nor a URL nor a socket")),
            }
        };
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        if !["redis", "rediss", "redis+unix"].contains(&scheme) {
            // Not quoted: where "://" stands in a password, it is a piece of it.
            return Err(setting.wrong("its scheme is neither redis:// nor rediss:// nor redis+unix://"));
        }
        fred::types::config::Config::from_url(&url)
            .map(Self)
            .map_err(|error| setting.wrong(format_args!("not a usable URL ({})", error.details())))
    }

    /// With the password of its file, where the URL has none.
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
    /// # Errors
    /// When the address or the password's file cannot be used.
    pub fn resolve(&self) -> Result<RedisConfig, ConfigError> {
        let password = self.password.read()?;
        RedisConfig::parse(&self.redis_url).map(|config| config.with_password(password.as_ref()))
    }
}

impl fmt::Debug for RedisArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisArgs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_form_is_taken() {
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
    fn a_password_from_a_file_is_for_urls_without_one() {
        let password = SecretString::from("from-the-file".to_owned());
        for (url, is) in [("redis:6379", "from-the-file"), ("redis://u:own@h:1", "own")] {
            let config = RedisConfig::parse(url).expect(url).with_password(Some(&password));
            assert_eq!(config.fred().password.as_deref(), Some(is));
        }
    }

    #[test]
    fn anything_else_is_refused_without_repeating_it() {
        for text in ["", ":6379", "redis:port", "http://h:sesame@x", "redis://u:sesame@h:notaport"] {
            let error = RedisConfig::parse(text).expect_err(text).to_string();
            assert!(error.starts_with("REDIS_URL: ") && !error.contains("sesame"), "{error}");
        }
    }
}
