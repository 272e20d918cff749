//! `app secrets init`: writes what production needs, once.

use std::process::ExitCode;

use crate::{cli::SecretsInitArgs, config::setting};

#[allow(clippy::print_stdout, reason = "which files there are is this command's result")]
pub fn init(args: &SecretsInitArgs) -> anyhow::Result<ExitCode> {
    let state_dir = setting("APP_STATE_DIR", &args.state_dir, "/var/lib/app").directory()?;
    for (path, new) in args.secrets.init(&state_dir)? {
        println!("secrets: {} {}", if new { "written" } else { "kept" }, path.display());
    }
    Ok(ExitCode::SUCCESS)
}
