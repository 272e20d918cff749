//! `APP_KEY_PEPPERS`, `APP_KEY_TAG_SECRETS`, `APP_CACHE_SECRETS`: the secrets behind API keys.
//!
//! Each is a list `VERSION:HEX[,VERSION:HEX]`, newest first, in its variable or in a file of `APP_SECRETS_DIR`
//! (`key-peppers`, `key-tag-secrets`, `cache-secrets`) with the same text. `app secrets init` creates the files. In
//! development missing files are generated; in production the start is refused. All processes of a cluster need the same.
//!
//! The pepper makes a stolen table of hashes useless. The tag secret lets the API refuse a forged key without a lookup.
//! The cache secret authenticates entries in Redis, so that access to Redis does not allow making a key. To rotate a
//! secret, put the new version first, and keep the old one for as long as keys made under it are in use (five minutes
//! for the cache).

use std::{
    fs,
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use clap::Args;
use data_encoding::HEXLOWER_PERMISSIVE;
use secrecy::{ExposeSecret, SecretSlice, SecretString};

use super::{
    ConfigError,
    environment::Environment,
    value::{List, Optional, Value, directory, value},
};

const EXAMPLE: &str = "1:64-HEX-DIGITS";
const DIR_EXAMPLE: &str = "/var/lib/app";
const FILES: [&str; 3] = ["key-peppers", "key-tag-secrets", "cache-secrets"];

/// The secrets, or the directory of their files.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Secrets")]
pub struct SecretArgs {
    /// Peppers of key hashes, newest first; empty: read from the file `key-peppers`.
    #[arg(long, env = "APP_KEY_PEPPERS", default_value = "", hide_env_values = true, value_name = "SECRETS",
          value_parser = secrets().optional())]
    key_peppers: Optional<List<Versioned>>,
    /// Secrets of key tags, newest first; empty: read from the file `key-tag-secrets`.
    #[arg(long, env = "APP_KEY_TAG_SECRETS", default_value = "", hide_env_values = true, value_name = "SECRETS",
          value_parser = secrets().optional())]
    key_tag_secrets: Optional<List<Versioned>>,
    /// Secrets that authenticate cache entries in Redis, newest first; empty: read from the file `cache-secrets`.
    #[arg(long, env = "APP_CACHE_SECRETS", default_value = "", hide_env_values = true, value_name = "SECRETS",
          value_parser = secrets().optional())]
    cache_secrets: Optional<List<Versioned>>,
    /// Directory of the files with these secrets; empty: `secrets` in APP_STATE_DIR. `app secrets init` creates them.
    #[arg(long, env = "APP_SECRETS_DIR", default_value = "", value_name = "DIR",
          value_parser = directory("/run/secrets/app").optional())]
    secrets_dir: Optional<PathBuf>,
}

/// One secret with its version.
#[derive(Clone, Debug)]
pub struct Versioned {
    /// The version, 0 to 61: one Base62 digit of a key states which secret made it.
    pub version: u8,
    /// The secret, at least 32 bytes.
    pub secret: SecretSlice<u8>,
}

/// The secrets of a cluster; no list is empty, and the newest comes first.
#[derive(Clone, Debug)]
pub struct KeySecrets {
    /// Peppers of key hashes.
    pub peppers: Vec<Versioned>,
    /// Secrets of key tags.
    pub tags: Vec<Versioned>,
    /// Secrets that authenticate cache entries.
    pub cache: Vec<Versioned>,
}

impl SecretArgs {
    /// Returns the secrets from the variables or else from the files. In development missing files are generated.
    ///
    /// # Errors
    /// `ConfigError` when a file is malformed, is missing in production, or cannot be written in development.
    pub fn resolve(&self, environment: Environment, state_dir: &Path) -> Result<KeySecrets, ConfigError> {
        let (dir, dir_variable) = self.dir(state_dir);
        let secret = |variable, given: &Option<Vec<Versioned>>, file: &str| {
            if let Some(secrets) = given {
                return Ok(secrets.clone());
            }
            let path = dir.join(file);
            let text = match environment {
                Environment::Production => fs::read_to_string(&path).map(SecretString::from).map_err(|error| {
                    let problem = format_args!(
                        "must be set when APP_ENV=production, or be in {} ({error}); app secrets init writes it",
                        path.display()
                    );
                    ConfigError::new(variable, problem, EXAMPLE)
                })?,
                Environment::Development => read_or_generate(&path, dir_variable)?.0,
            };
            parse(text.expose_secret()).map_err(|problem| ConfigError::new(variable, problem, EXAMPLE))
        };
        Ok(KeySecrets {
            peppers: secret("APP_KEY_PEPPERS", &self.key_peppers, FILES[0])?,
            tags: secret("APP_KEY_TAG_SECRETS", &self.key_tag_secrets, FILES[1])?,
            cache: secret("APP_CACHE_SECRETS", &self.cache_secrets, FILES[2])?,
        })
    }

    /// Creates the files that are missing. Returns the path of each with whether it was missing.
    ///
    /// # Errors
    /// `ConfigError` when a file cannot be written.
    pub fn init(&self, state_dir: &Path) -> Result<Vec<(PathBuf, bool)>, ConfigError> {
        let (dir, dir_variable) = self.dir(state_dir);
        FILES.iter().map(|file| Ok((dir.join(file), read_or_generate(&dir.join(file), dir_variable)?.1))).collect()
    }

    /// Returns the directory of the files, and the variable that names it.
    fn dir(&self, state_dir: &Path) -> (PathBuf, &'static str) {
        match &self.secrets_dir {
            None => (state_dir.join("secrets"), "APP_STATE_DIR"),
            Some(dir) => (dir.clone(), "APP_SECRETS_DIR"),
        }
    }
}

fn secrets() -> Value<List<Versioned>> {
    value(EXAMPLE, "`VERSION:HEX[,VERSION:HEX]`, versions 0 to 61, 32 bytes or more each", parse)
}

fn parse(text: &str) -> Result<Vec<Versioned>, String> {
    let one = |part: &str| {
        let (version, hex) = part.trim().split_once(':')?;
        let version = version.parse().ok().filter(|version| *version < 62)?;
        let secret = HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).ok().filter(|secret| secret.len() >= 32)?;
        Some(Versioned { version, secret: SecretSlice::from(secret) })
    };
    let all: Option<Vec<Versioned>> = text.trim().split(',').map(one).collect();
    // The text is not repeated: it may be a secret with a mistake in it.
    all.ok_or_else(|| "is not VERSION:HEX[,VERSION:HEX] with versions below 62 and 32 bytes or more".to_owned())
}

/// Reads the file, or creates it (`true`) readable by its owner only. Of several processes at once, one creates it and all
/// read the same.
fn read_or_generate(path: &Path, variable: &'static str) -> Result<(SecretString, bool), ConfigError> {
    let wrong = |error: std::io::Error| {
        ConfigError::new(variable, format_args!("secrets cannot be stored in {}: {error}", path.display()), DIR_EXAMPLE)
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
    let created = write_once(path, 0o600, &format!("1:{}", HEXLOWER_PERMISSIVE.encode(&secret))).map_err(wrong)?;
    fs::read_to_string(path).map(|text| (SecretString::from(text), created)).map_err(wrong)
}

/// Writes a file of one line, and returns `false` without writing when the file exists. Of several processes at once,
/// one writes it, and none reads a part of it.
///
/// # Errors
/// The I/O error of the file or its directory.
pub fn write_once(path: &Path, mode: u32, line: &str) -> std::io::Result<bool> {
    if path.try_exists()? {
        return Ok(false);
    }
    // Not named by the process' number: that is 1 in every container, and containers may share the directory.
    let temporary = path.with_extension(format!("{}.new", uuid::Uuid::new_v4()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    writeln!(file, "{line}")?;
    file.sync_all()?;
    // A link and not a rename: it fails if another process was first, and then the other's file counts.
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
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn secrets_are_read_as_they_were_written(written in vec((0..62_u8, vec(any::<u8>(), 32..40)), 1..4)) {
            let write = |(version, secret): &(u8, Vec<u8>)| format!("{version}:{}", HEXLOWER_PERMISSIVE.encode(secret));
            let text: Vec<String> = written.iter().map(write).collect();

            let read = parse(&text.join(",")).expect("well-formed");

            let read: Vec<_> = read.iter().map(|one| (one.version, one.secret.expose_secret().to_vec())).collect();
            prop_assert_eq!(read, written);
        }

        #[test]
        fn any_text_is_read_or_refused_without_repeating_it(text in any::<String>(), secret in "[g-z]{12}") {
            for text in [text, format!("1:{secret}"), secret.clone()] {
                if let Err(problem) = parse(&text) {
                    prop_assert!(!problem.contains(&secret), "{}", problem);
                }
            }
        }
    }

    #[test]
    fn development_generates_secrets_once() {
        let (args, dir) = (SecretArgs::default(), tempfile::tempdir().expect("a directory"));

        let first = args.resolve(Environment::Development, dir.path()).expect("generated");
        let second = args.resolve(Environment::Development, dir.path()).expect("read back");

        assert_eq!(first.peppers[0].secret.expose_secret(), second.peppers[0].secret.expose_secret());
        assert_ne!(first.peppers[0].secret.expose_secret(), first.tags[0].secret.expose_secret());
    }

    #[test]
    fn production_refuses_missing_secrets_until_init_wrote_them() {
        let (args, dir) = (SecretArgs::default(), tempfile::tempdir().expect("a directory"));

        let refused = args.resolve(Environment::Production, dir.path()).expect_err("refused");
        let written = args.init(dir.path()).expect("written");

        assert_eq!(refused.variable, "APP_KEY_PEPPERS");
        assert!(written.iter().all(|(_, created)| *created));
        assert!(args.resolve(Environment::Production, dir.path()).is_ok(), "from the files");
        assert!(args.init(dir.path()).expect("kept").iter().all(|(_, created)| !*created));
    }

    /// The threads of a process have one process number, as the processes of several containers do.
    #[test]
    fn one_of_many_writers_wins_and_all_read_its_line() {
        let dir = tempfile::tempdir().expect("a directory");
        for round in 0..50 {
            let path = dir.path().join(format!("secret-{round}"));
            let write = |n: usize| {
                let created = write_once(&path, 0o600, &format!("line {n}")).expect("written");
                (created.then_some(n), fs::read_to_string(&path).expect("there"))
            };

            let all: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || write(n))).collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
            });

            let winners: Vec<_> = all.iter().filter_map(|(created, _)| *created).collect();
            assert_eq!(winners.len(), 1, "{winners:?}");
            assert!(all.iter().all(|(_, line)| *line == format!("line {}\n", winners[0])), "{all:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 50, "temporary files are left");
    }

    #[test]
    fn malformed_secret_is_refused_without_repeating_it() {
        for text in ["1:abcd", "deadbeef", "99:00", ","] {
            let problem = parse(text).map(drop).expect_err(text);

            assert!(!problem.contains("abcd") && !problem.contains("deadbeef"), "{problem}");
        }
    }

    #[test]
    fn debug_output_contains_no_secret() {
        let secrets = parse(&format!("1:{}", "5e5a".repeat(16))).expect("well-formed");

        assert!(!format!("{secrets:?}").contains("94"), "94 is 0x5e: {secrets:?}");
    }
}
