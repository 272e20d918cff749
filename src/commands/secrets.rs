//! `app secrets init`: writes what production needs, once.

use std::process::ExitCode;

use crate::{cli::SecretsInitArgs, config::setting};

#[allow(clippy::print_stdout, reason = "which files there are is this command's result")]
pub fn init(args: &SecretsInitArgs) -> anyhow::Result<ExitCode> {
    let state_dir = setting("APP_STATE_DIR", &args.state_dir, "/var/lib/app").directory()?;
    let mut files = args.secrets.init(&state_dir)?;
    let passwords = [args.database_password.init()?, args.redis_password.init()?];
    files.extend(passwords.into_iter().flatten().map(|(path, new)| (path.to_owned(), new)));
    for (path, new) in files {
        println!("secrets: {} {}", if new { "written" } else { "kept" }, path.display());
    }
    Ok(ExitCode::SUCCESS)
}
