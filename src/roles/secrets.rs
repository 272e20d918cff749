//! `app secrets init`: writes what production needs, once.

use std::process::ExitCode;

use crate::cli::SecretsInitArgs;

#[allow(clippy::print_stdout, reason = "which files there are is this command's result")]
pub fn init(args: &SecretsInitArgs) -> anyhow::Result<ExitCode> {
    for (path, new) in args.secrets.init(&args.state_dir)? {
        println!("secrets: {} {}", if new { "written" } else { "kept" }, path.display());
    }
    Ok(ExitCode::SUCCESS)
}
