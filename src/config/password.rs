//! `DATABASE_PASSWORD_FILE`, `REDIS_PASSWORD_FILE`: files with passwords for URLs that have none.
//!
//! A file can be mounted into a container and never appears in its environment. `app secrets init` creates the files
//! that are missing, so that a server and its clients share a password that no person has to see.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use data_encoding::HEXLOWER;
use secrecy::{ExposeSecret, SecretString};

use super::{
    ConfigError,
    secrets::write_once,
    value::{Optional, file},
};

const DATABASE: &str = "DATABASE_PASSWORD_FILE";
const REDIS: &str = "REDIS_PASSWORD_FILE";
const EXAMPLE: &str = "/run/secrets/password";
/// The mode of the file. Servers and workers run as other users than the API, and share only its group.
const FILE_MODE: u32 = 0o640;

/// The file with the password of Postgres.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Postgres")]
pub struct DatabasePasswordArgs {
    /// File with the password for database URLs that have none; empty: no file. `app secrets init` creates it.
    #[arg(long, env = "DATABASE_PASSWORD_FILE", default_value = "", value_name = "PATH",
          value_parser = file(EXAMPLE).optional())]
    database_password_file: Optional<PathBuf>,
}

/// The file with the password of Redis.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Redis")]
pub struct RedisPasswordArgs {
    /// File with the password for a Redis URL that has none; empty: no file. `app secrets init` creates it.
    #[arg(long, env = "REDIS_PASSWORD_FILE", default_value = "", value_name = "PATH",
          value_parser = file(EXAMPLE).optional())]
    redis_password_file: Optional<PathBuf>,
}

impl DatabasePasswordArgs {
    /// Reads the password, without the end of its line; `None` when no file is named.
    ///
    /// # Errors
    /// `ConfigError` when the file cannot be read or is empty.
    pub fn read(&self) -> Result<Option<SecretString>, ConfigError> {
        read(DATABASE, self.database_password_file.as_deref())
    }

    /// Creates the file if it is missing. Returns its path and whether it was missing; `None` when no file is named.
    ///
    /// # Errors
    /// `ConfigError` when the file cannot be written.
    pub fn init(&self) -> Result<Option<(&Path, bool)>, ConfigError> {
        init(DATABASE, self.database_password_file.as_deref())
    }
}

impl RedisPasswordArgs {
    /// Reads the password, without the end of its line; `None` when no file is named.
    ///
    /// # Errors
    /// `ConfigError` when the file cannot be read or is empty.
    pub fn read(&self) -> Result<Option<SecretString>, ConfigError> {
        read(REDIS, self.redis_password_file.as_deref())
    }

    /// Creates the file if it is missing. Returns its path and whether it was missing; `None` when no file is named.
    ///
    /// # Errors
    /// `ConfigError` when the file cannot be written.
    pub fn init(&self) -> Result<Option<(&Path, bool)>, ConfigError> {
        init(REDIS, self.redis_password_file.as_deref())
    }
}

fn read(variable: &'static str, path: Option<&Path>) -> Result<Option<SecretString>, ConfigError> {
    let Some(path) = path else { return Ok(None) };
    let wrong = |problem: std::fmt::Arguments<'_>| {
        let problem = format_args!("{} {problem}; app secrets init creates it", path.display());
        ConfigError::new(variable, problem, EXAMPLE)
    };
    let text = fs::read_to_string(path)
        .map(SecretString::from)
        .map_err(|error| wrong(format_args!("cannot be read ({error})")))?;
    match text.expose_secret().trim_end_matches(['\r', '\n']) {
        "" => Err(wrong(format_args!("is empty"))),
        password => Ok(Some(SecretString::from(password.to_owned()))),
    }
}

fn init<'a>(variable: &'static str, path: Option<&'a Path>) -> Result<Option<(&'a Path, bool)>, ConfigError> {
    let Some(path) = path else { return Ok(None) };
    let wrong = |error: std::io::Error| {
        let problem = format_args!("the password cannot be written to {}: {error}", path.display());
        ConfigError::new(variable, problem, EXAMPLE)
    };
    let mut password = [0u8; 24];
    getrandom::fill(&mut password).map_err(|error| wrong(error.into()))?;
    let created = write_once(path, FILE_MODE, &HEXLOWER.encode(&password)).map_err(wrong)?;
    Ok(Some((path, created)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn password_is_created_once_and_read_without_its_line_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("password");
        let args = RedisPasswordArgs { redis_password_file: Some(path.clone()) };
        let missing = args.read().map(drop).expect_err("not there yet");

        let created = args.init().expect("created");
        let first = args.read().expect("read").expect("named");
        let kept = args.init().expect("kept");
        let second = args.read().expect("read").expect("named");

        assert_eq!(missing.variable, REDIS);
        assert_eq!((created, kept), (Some((path.as_path(), true)), Some((path.as_path(), false))));
        assert_eq!(first.expose_secret(), second.expose_secret());
        assert!(first.expose_secret().len() == 48 && !first.expose_secret().contains('\n'));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, FILE_MODE);
    }

    #[test]
    fn empty_file_is_an_error_and_no_file_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("password");
        fs::write(&path, "\n").expect("written");
        let empty = DatabasePasswordArgs { database_password_file: Some(path) };
        let none = DatabasePasswordArgs { database_password_file: None };

        assert_eq!(empty.read().map(drop).expect_err("empty").variable, DATABASE);
        assert!(none.read().expect("none").is_none() && none.init().expect("none").is_none());
    }
}
