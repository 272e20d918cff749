//! The secrets behind API keys: `APP_KEY_PEPPERS`, `APP_KEY_TAG_SECRETS` and `APP_CACHE_SECRETS`, each
//! `VERSION:HEX[,VERSION:HEX]`, newest first; or files of `APP_SECRETS_DIR` (`key-peppers`, `key-tag-secrets`,
//! `cache-secrets`) with the same text, which `app secrets init` writes.
//!
//! In development missing files are generated; production must be given them. All processes of a cluster need the same.
//! The pepper makes a stolen table of hashes useless, the tag lets forged keys die unread, and the cache's secret lets
//! nobody who can write to Redis make a key. To rotate one, put the new version in front and keep the old one while
//! keys (five minutes for the cache) made under it live.

use std::{
    fmt, fs,
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
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
    /// Secrets of values in Redis, in the same form.
    #[arg(long, env = "APP_CACHE_SECRETS", default_value = "", hide_env_values = true, value_name = "SECRETS")]
    cache_secrets: String,
    /// Where the files with these secrets are; empty: `secrets` in APP_STATE_DIR.
    #[arg(long, env = "APP_SECRETS_DIR", default_value = "", value_name = "DIR")]
    secrets_dir: String,
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
    pub cache: Vec<Versioned>,
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
        let (dir, place) = self.dir(state_dir);
        let secret = |variable, given: &str, file: &str| {
            let path = dir.join(file);
            let text = match (given.trim(), environment) {
                ("", Environment::Production) => {
                    fs::read_to_string(&path).map(SecretString::from).map_err(|error| {
                        setting(variable, "", EXAMPLE).wrong(format_args!(
                            "must be set when APP_ENV=production, or be in {} ({error}); app secrets init writes it",
                            path.display()
                        ))
                    })?
                }
                ("", Environment::Development) => generated(&path, place)?.0,
                (text, _) => SecretString::from(text.to_owned()),
            };
            parse(variable, text.expose_secret().trim())
        };
        Ok(KeySecrets {
            peppers: secret("APP_KEY_PEPPERS", &self.key_peppers, FILES[0])?,
            tags: secret("APP_KEY_TAG_SECRETS", &self.key_tag_secrets, FILES[1])?,
            cache: secret("APP_CACHE_SECRETS", &self.cache_secrets, FILES[2])?,
        })
    }

    /// Writes the files that are missing; answers each with whether it was.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn init(&self, state_dir: &Path) -> Result<Vec<(PathBuf, bool)>, ConfigError> {
        for (variable, given) in [
            ("APP_KEY_PEPPERS", &self.key_peppers),
            ("APP_KEY_TAG_SECRETS", &self.key_tag_secrets),
            ("APP_CACHE_SECRETS", &self.cache_secrets),
        ] {
            // What is given counts instead of the file; better told now than at the next start.
            if !given.trim().is_empty() {
                parse(variable, given)?;
            }
        }
        let (dir, place) = self.dir(state_dir);
        FILES.iter().map(|file| Ok((dir.join(file), generated(&dir.join(file), place)?.1))).collect()
    }

    /// Where the files are, and which variable says so.
    fn dir(&self, state_dir: &Path) -> (PathBuf, &'static str) {
        match self.secrets_dir.trim() {
            "" => (state_dir.join("secrets"), "APP_STATE_DIR"),
            dir => (PathBuf::from(dir), "APP_SECRETS_DIR"),
        }
    }
}

const FILES: [&str; 3] = ["key-peppers", "key-tag-secrets", "cache-secrets"];

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

/// Reads the file, or makes it (`true`): only its owner can read it, and of several processes at once one wins.
fn generated(path: &Path, variable: &'static str) -> Result<(SecretString, bool), ConfigError> {
    let wrong = |error: std::io::Error| {
        setting(variable, "", "/var/lib/app")
            .wrong(format_args!("secrets cannot be kept in {}: {error}", path.display()))
    };
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(wrong)?;
    }
    match fs::read_to_string(path) {
        Ok(text) => return Ok((SecretString::from(text), false)),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(wrong(error)),
    }
    let mut secret = [0u8; 32];
    getrandom::fill(&mut secret).map_err(|error| wrong(error.into()))?;
    let made = written_once(path, 0o600, &format!("1:{}", HEXLOWER_PERMISSIVE.encode(&secret))).map_err(wrong)?;
    fs::read_to_string(path).map(|text| (SecretString::from(text), made)).map_err(wrong)
}

/// Writes a file of one line unless it is there (`false`): of several processes at once one wins, and nobody sees half.
///
/// # Errors
/// When it cannot be written.
pub fn written_once(path: &Path, mode: u32, line: &str) -> std::io::Result<bool> {
    if path.try_exists()? {
        return Ok(false);
    }
    // Not by the process' number: that is 1 in every container, and they may share the directory.
    let temporary = path.with_extension(format!("{}.new", uuid::Uuid::new_v4()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    writeln!(file, "{line}")?;
    file.sync_all()?;
    // A link, not a rename: it fails if another process was first, and then theirs counts.
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    match linked {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: SecretArgs = SecretArgs {
        key_peppers: String::new(),
        key_tag_secrets: String::new(),
        cache_secrets: String::new(),
        secrets_dir: String::new(),
    };

    #[test]
    fn development_generates_once_and_production_refuses() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = NONE.resolve(Environment::Development, dir.path()).expect("generated");
        let second = NONE.resolve(Environment::Development, dir.path()).expect("read back");
        assert_eq!(first.peppers[0].secret.expose_secret(), second.peppers[0].secret.expose_secret());
        assert_ne!(first.peppers[0].secret.expose_secret(), first.tags[0].secret.expose_secret());
        let empty = tempfile::tempdir().expect("a directory");
        let error = NONE.resolve(Environment::Production, empty.path()).expect_err("refused");
        assert_eq!(error.variable, "APP_KEY_PEPPERS");
        let made = NONE.init(empty.path()).expect("written");
        assert!(made.iter().all(|(_, new)| *new));
        assert!(NONE.resolve(Environment::Production, empty.path()).is_ok(), "from the files");
        assert!(NONE.init(empty.path()).expect("kept").iter().all(|(_, new)| !*new));
    }

    /// Threads have one number of a process, as processes in containers do.
    #[test]
    fn of_many_at_once_one_writes_and_all_see_its_line() {
        let dir = tempfile::tempdir().expect("a directory");
        for round in 0..50 {
            let path = dir.path().join(format!("secret-{round}"));
            let write = |n: usize| {
                let made = written_once(&path, 0o600, &format!("line {n}")).expect("written");
                (made.then_some(n), fs::read_to_string(&path).expect("there"))
            };
            let all: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || write(n))).collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
            });
            let winners: Vec<_> = all.iter().filter_map(|(made, _)| *made).collect();
            assert_eq!(winners.len(), 1, "{winners:?}");
            assert!(all.iter().all(|(_, seen)| *seen == format!("line {}\n", winners[0])), "{all:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 50, "temporary files are left");
    }

    #[test]
    fn a_short_or_malformed_secret_is_refused_without_repeating_it() {
        for text in ["1:abcd", "deadbeef", "99:00", ","] {
            let error = parse("APP_KEY_PEPPERS", text).map(|_| ()).expect_err(text).to_string();
            assert!(!error.contains("abcd") && !error.contains("deadbeef"), "{error}");
        }
    }
}
