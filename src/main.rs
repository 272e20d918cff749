//! The binary: starts the runtime, runs one role, and turns its error into one line and an exit code.

use std::process::ExitCode;

use app::{cli::Cli, commands, telemetry};
use clap::Parser;

fn main() -> ExitCode {
    // Before anything that may use TLS: there is one provider, and nobody guesses.
    drop(rustls::crypto::ring::default_provider().install_default());
    let cli = Cli::parse();
    // Dropped after the runtime: its tasks may log until then.
    let _flush = telemetry::FlushOnDrop;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            telemetry::last_line(&format!("app: no runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(commands::run(cli)) {
        Ok(code) => code,
        Err(error) => {
            telemetry::last_line(&format!("app: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
