//! The binary: starts the runtime, runs one subcommand, and turns its error into one line and an exit status.

use std::{fmt::Display, process::ExitCode};

use app::{cli::Cli, commands, telemetry};

fn main() -> ExitCode {
    // Before anything that may use TLS, so that no library picks a provider of its own.
    drop(rustls::crypto::ring::default_provider().install_default());
    let cli = match Cli::from_arguments() {
        Ok(cli) => cli,
        Err(error) => return failure(&error),
    };
    // Dropped after the runtime, whose tasks may log until then.
    let _flush = telemetry::FlushOnDrop;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure(&format_args!("cannot start the runtime: {error}")),
    };
    runtime.block_on(commands::run(cli)).unwrap_or_else(|error| failure(&error))
}

fn failure(error: &dyn Display) -> ExitCode {
    telemetry::last_line(&format!("app: {error:#}"));
    ExitCode::FAILURE
}
