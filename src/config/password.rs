//! `DATABASE_PASSWORD_FILE`, `REDIS_PASSWORD_FILE`: where a password is that its URL does not hold.
//!
//! A file can be handed to a container and never shows in its environment. `app secrets init` makes those that are
//! missing, so that a server and its clients can be given the same one without anybody having seen it.

use std::{fs, path::Path};

use clap::Args;
use data_encoding::HEXLOWER;
use secrecy::{ExposeSecret, SecretString};

use super::{ConfigError, secrets::written_once, setting};

const DATABASE: &str = "DATABASE_PASSWORD_FILE";
const REDIS: &str = "REDIS_PASSWORD_FILE";
const EXAMPLE: &str = "/run/secrets/password";
/// Servers and workers are other users than the API; what they share is the file's group.
const MODE: u32 = 0o640;

#[derive(Args, Clone, Debug)]
pub struct DatabasePasswordArgs {
    /// A file with the password for database URLs that have none; empty: none.
    #[arg(long, env = "DATABASE_PASSWORD_FILE", default_value = "", value_name = "PATH")]
    database_password_file: String,
}

#[derive(Args, Clone, Debug)]
pub struct RedisPasswordArgs {
    /// A file with the password for a Redis URL that has none; empty: none.
    #[arg(long, env = "REDIS_PASSWORD_FILE", default_value = "", value_name = "PATH")]
    redis_password_file: String,
}

impl DatabasePasswordArgs {
    /// The password, without the end of its line.
    ///
    /// # Errors
    /// When the file cannot be read or is empty.
    pub fn read(&self) -> Result<Option<SecretString>, ConfigError> {
        read(DATABASE, &self.database_password_file)
    }

    /// Writes the file if it is missing; answers its path and whether it was, or `None` when none is named.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn init(&self) -> Result<Option<(&Path, bool)>, ConfigError> {
        init(DATABASE, &self.database_password_file)
    }
}

impl RedisPasswordArgs {
    /// As for the database.
    ///
    /// # Errors
    /// When the file cannot be read or is empty.
    pub fn read(&self) -> Result<Option<SecretString>, ConfigError> {
        read(REDIS, &self.redis_password_file)
    }

    /// As for the database.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn init(&self) -> Result<Option<(&Path, bool)>, ConfigError> {
        init(REDIS, &self.redis_password_file)
    }
}

fn read(variable: &'static str, path: &str) -> Result<Option<SecretString>, ConfigError> {
    let path = path.trim();
    if path.is_empty() {
        return Ok(None);
    }
    let wrong = |problem: std::fmt::Arguments<'_>| {
        setting(variable, path, EXAMPLE).wrong(format_args!("{path} {problem}; app secrets init makes it"))
    };
    let text = fs::read_to_string(path)
        .map(SecretString::from)
        .map_err(|error| wrong(format_args!("cannot be read ({error})")))?;
    match text.expose_secret().trim_end_matches(['\r', '\n']) {
        "" => Err(wrong(format_args!("is empty"))),
        password => Ok(Some(SecretString::from(password.to_owned()))),
    }
}

fn init<'a>(variable: &'static str, path: &'a str) -> Result<Option<(&'a Path, bool)>, ConfigError> {
    let wrong = |error: std::io::Error| {
        setting(variable, path, EXAMPLE).wrong(format_args!("a password cannot be kept in {path}: {error}"))
    };
    let path = path.trim();
    if path.is_empty() {
        return Ok(None);
    }
    let mut password = [0u8; 24];
    getrandom::fill(&mut password).map_err(|error| wrong(error.into()))?;
    let new = written_once(Path::new(path), MODE, &HEXLOWER.encode(&password)).map_err(wrong)?;
    Ok(Some((Path::new(path), new)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_password_is_made_once_and_read_without_its_line_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("password");
        let args = RedisPasswordArgs { redis_password_file: path.display().to_string() };
        let missing = args.read().map(drop).expect_err("not there yet");
        assert_eq!(missing.variable, REDIS);
        assert_eq!(args.init().expect("made"), Some((path.as_path(), true)));
        let first = args.read().expect("read").expect("named");
        assert_eq!(args.init().expect("kept"), Some((path.as_path(), false)));
        let second = args.read().expect("read").expect("named");
        assert_eq!(first.expose_secret(), second.expose_secret());
        assert!(first.expose_secret().len() == 48 && !first.expose_secret().contains('\n'));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, MODE);
    }

    #[test]
    fn an_empty_file_is_no_password_and_no_name_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("password");
        fs::write(&path, "\n").expect("written");
        let args = DatabasePasswordArgs { database_password_file: path.display().to_string() };
        assert_eq!(args.read().map(drop).expect_err("empty").variable, DATABASE);
        let none = DatabasePasswordArgs { database_password_file: String::new() };
        assert!(none.read().expect("none").is_none() && none.init().expect("none").is_none());
    }
}
