//! Configuration: each variable is declared once, as a field that clap reads from an option or the environment.
//!
//! There is one file per concern. A declaration holds the type, the bounds, the default, an example and the help of its
//! variable (see `value`); `docs/configuration.md` is generated from the declarations by `page`. What depends on several
//! variables, on files or on this machine is checked by the `resolve` functions. Either way a wrong value ends the program
//! with one line: the variable, the problem and an example. The values of secrets appear in no message, no `Debug` output
//! and no `--help`.

pub mod backend;
pub mod database;
pub mod environment;
pub mod http;
pub mod identity;
pub mod instances;
pub mod lease;
pub mod page;
pub mod password;
pub mod redis;
pub mod secrets;
pub mod state_dir;
pub mod value;
pub mod worker;

use std::{borrow::Cow, error::Error as _, fmt};

use thiserror::Error;

/// An invalid variable: what is wrong with its value, and an example of a valid one.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{variable}: {problem}; example: {variable}={example}")]
pub struct ConfigError {
    /// The name of the environment variable.
    pub variable: Cow<'static, str>,
    /// What is wrong with its value; never the value of a secret.
    pub problem: String,
    /// A value that is accepted.
    pub example: &'static str,
}

impl ConfigError {
    /// Returns the error of one variable.
    pub fn new(variable: impl Into<Cow<'static, str>>, problem: impl fmt::Display, example: &'static str) -> Self {
        Self { variable: variable.into(), problem: problem.to_string(), example }
    }

    /// Returns the error that made clap refuse a value; `None` for clap's own errors, such as an unknown option.
    pub fn of_clap(error: &clap::Error) -> Option<&Self> {
        error.source()?.downcast_ref()
    }
}
