//! `app config docs`: prints the page `docs/configuration.md`, which is generated from the command line's declarations.

use std::process::ExitCode;

use crate::cli::Cli;

/// Prints the page.
#[allow(clippy::print_stdout, reason = "the page is the command's output")]
pub fn docs() -> ExitCode {
    print!("{}", Cli::configuration_page());
    ExitCode::SUCCESS
}
