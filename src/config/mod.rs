//! Settings, one file per concern. Each is a command-line option and an environment variable of the same name.
//!
//! Clap takes them all as text, so that a bad value ends in our own words: one line with the variable, what is wrong
//! and an example. Secret values appear in no message, no `Debug` output and no `--help`.

pub mod backend;
pub mod database;
pub mod environment;
pub mod http;
pub mod identity;
pub mod instances;
pub mod password;
pub mod redis;
pub mod secrets;
pub mod worker;

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use thiserror::Error;

/// What is wrong with one setting, and what a good value looks like.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{variable}: {problem}; example: {variable}={example}")]
pub struct ConfigError {
    pub variable: &'static str,
    pub problem: String,
    pub example: &'static str,
}

/// One variable while it is being read.
pub(crate) struct Setting<'a> {
    pub variable: &'static str,
    pub text: &'a str,
    pub example: &'static str,
}

impl Setting<'_> {
    pub fn wrong(&self, problem: impl fmt::Display) -> ConfigError {
        ConfigError { variable: self.variable, problem: problem.to_string(), example: self.example }
    }

    /// A whole number or other plain value between `min` and `max`.
    pub fn between<T: FromStr + PartialOrd + fmt::Display>(&self, min: T, max: T) -> Result<T, ConfigError> {
        match self.text.trim().parse::<T>() {
            Ok(value) if value >= min && value <= max => Ok(value),
            _ => Err(self.wrong(format_args!("\"{}\" is not a number from {min} to {max}", self.text))),
        }
    }

    /// Milliseconds.
    pub fn millis(&self, min: u64, max: u64) -> Result<Duration, ConfigError> {
        self.between(min, max).map(Duration::from_millis)
    }

    pub fn flag(&self) -> Result<bool, ConfigError> {
        match self.text.trim() {
            "1" | "true" | "on" | "yes" => Ok(true),
            "" | "0" | "false" | "off" | "no" => Ok(false),
            other => Err(self.wrong(format_args!("\"{other}\" is neither true nor false"))),
        }
    }

    /// A directory, which need not be there yet.
    pub fn directory(&self) -> Result<PathBuf, ConfigError> {
        match self.text.trim() {
            "" => Err(self.wrong("names no directory")),
            path => Ok(PathBuf::from(path)),
        }
    }

    /// `HOST:PORT` to listen on.
    pub fn listen(&self) -> Result<std::net::SocketAddr, ConfigError> {
        self.text.trim().parse().map_err(|_| self.wrong(format_args!("\"{}\" is not ADDRESS:PORT", self.text)))
    }
}

pub(crate) fn setting<'a>(variable: &'static str, text: &'a str, example: &'static str) -> Setting<'a> {
    Setting { variable, text, example }
}
