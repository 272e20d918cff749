//! `app secrets init`: creates the secrets that production needs, and leaves those that exist.

use std::process::ExitCode;

use crate::cli::SecretsInitArgs;

/// Creates the missing files and prints one line for each file.
///
/// # Errors
/// `ConfigError` when a file cannot be written.
#[allow(clippy::print_stdout, reason = "the list of files is the command's output")]
pub fn init(args: &SecretsInitArgs) -> anyhow::Result<ExitCode> {
    let mut files = args.secrets.init(&args.state.state_dir)?;
    let passwords = [args.database_password.init()?, args.redis_password.init()?];
    files.extend(passwords.into_iter().flatten().map(|(path, created)| (path.to_owned(), created)));
    for (path, created) in files {
        println!("secrets: {} {}", if created { "written" } else { "kept" }, path.display());
    }
    Ok(ExitCode::SUCCESS)
}
