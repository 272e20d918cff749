//! The secrets behind API keys: `APP_KEY_PEPPERS` and `APP_KEY_TAG_SECRETS`, each `VERSION:HEX[,VERSION:HEX]`, newest first.
//!
//! In development they are generated once into the state directory; production must be given them. All processes of a
//! cluster need the same. The pepper makes a stolen table of hashes useless; the tag lets forged keys die unread.

use std::{
    fmt, fs,
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use clap::Args;
use data_encoding::HEXLOWER_PERMISSIVE;
use secrecy::{ExposeSecret, SecretSlice, SecretString};

use super::{ConfigError, environment::Environment, setting};

const EXAMPLE: &str = "1:64-HEX-DIGITS";

#[derive(Args, Clone)]
pub struct SecretArgs {
    /// Peppers of key hashes, VERSION:HEX[,…] with at least 32 bytes each, newest first.
    #[arg(long, env = "APP_KEY_PEPPERS", default_value = "", hide_env_values = true, value_name = "SECRETS")]
    key_peppers: String,
    /// Secrets of key tags, in the same form.
    #[arg(long, env = "APP_KEY_TAG_SECRETS", default_value = "", hide_env_values = true, value_name = "SECRETS")]
    key_tag_secrets: String,
}

impl fmt::Debug for SecretArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretArgs")
    }
}

/// One secret with its version, 0 to 61: one Base62 digit of the key says which made it.
#[derive(Clone)]
pub struct Versioned {
    pub version: u8,
    pub secret: SecretSlice<u8>,
}

/// The secrets of a cluster; never empty, newest first.
#[derive(Clone)]
pub struct KeySecrets {
    pub peppers: Vec<Versioned>,
    pub tags: Vec<Versioned>,
}

impl fmt::Debug for KeySecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySecrets")
    }
}

impl SecretArgs {
    /// # Errors
    /// When a secret is malformed, missing in production, or cannot be kept in development.
    pub fn resolve(&self, environment: Environment, state_dir: &Path) -> Result<KeySecrets, ConfigError> {
        let secret = |variable, given: &str, file: &str| {
            let text = match (given.trim(), environment) {
                ("", Environment::Production) => {
                    return Err(setting(variable, "", EXAMPLE).wrong("must be set when APP_ENV=production"));
                }
                ("", Environment::Development) => generated(&state_dir.join("secrets").join(file))?,
                (text, _) => SecretString::from(text.to_owned()),
            };
            parse(variable, text.expose_secret())
        };
        Ok(KeySecrets {
            peppers: secret("APP_KEY_PEPPERS", &self.key_peppers, "key-peppers")?,
            tags: secret("APP_KEY_TAG_SECRETS", &self.key_tag_secrets, "key-tag-secrets")?,
        })
    }
}

fn parse(variable: &'static str, text: &str) -> Result<Vec<Versioned>, ConfigError> {
    let one = |part: &str| {
        let (version, hex) = part.trim().split_once(':')?;
        let version = version.parse().ok().filter(|version| *version < 62)?;
        let secret = HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).ok().filter(|secret| secret.len() >= 32)?;
        Some(Versioned { version, secret: SecretSlice::from(secret) })
    };
    let all: Option<Vec<Versioned>> = text.split(',').map(one).collect();
    all.ok_or_else(|| {
        setting(variable, "", EXAMPLE)
            .wrong("is not VERSION:HEX[,VERSION:HEX] with versions below 62 and 32 bytes or more")
    })
}

/// Reads the file, or makes it: only its owner can read it, and of several processes at once one wins.
fn generated(path: &Path) -> Result<SecretString, ConfigError> {
    let wrong = |error: std::io::Error| {
        setting("APP_STATE_DIR", "", "/var/lib/app")
            .wrong(format_args!("development secrets cannot be kept in {}: {error}", path.display()))
    };
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(wrong)?;
    }
    match fs::read_to_string(path) {
        Ok(text) => return Ok(SecretString::from(text.trim().to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(wrong(error)),
    }
    let mut secret = [0u8; 32];
    getrandom::fill(&mut secret).map_err(|error| wrong(error.into()))?;
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary).map_err(wrong)?;
    writeln!(file, "1:{}", HEXLOWER_PERMISSIVE.encode(&secret)).map_err(wrong)?;
    // A link, not a rename: it fails if another process was first, and then theirs counts.
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary).map_err(wrong)?;
    match linked {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(wrong(error)),
        _ => {}
    }
    fs::read_to_string(path).map(|text| SecretString::from(text.trim().to_owned())).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: SecretArgs = SecretArgs { key_peppers: String::new(), key_tag_secrets: String::new() };

    #[test]
    fn development_generates_once_and_production_refuses() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = NONE.resolve(Environment::Development, dir.path()).expect("generated");
        let second = NONE.resolve(Environment::Development, dir.path()).expect("read back");
        assert_eq!(first.peppers[0].secret.expose_secret(), second.peppers[0].secret.expose_secret());
        assert_ne!(first.peppers[0].secret.expose_secret(), first.tags[0].secret.expose_secret());
        let error = NONE.resolve(Environment::Production, dir.path()).expect_err("refused");
        assert_eq!(error.variable, "APP_KEY_PEPPERS");
    }

    #[test]
    fn a_short_or_malformed_secret_is_refused_without_repeating_it() {
        for text in ["1:abcd", "deadbeef", "99:00", ","] {
            let error = parse("APP_KEY_PEPPERS", text).map(|_| ()).expect_err(text).to_string();
            assert!(!error.contains("abcd") && !error.contains("deadbeef"), "{error}");
        }
    }
}
