//! `APP_STATE_DIR`: the directory for what belongs to this host and to no other.

use std::path::PathBuf;

use clap::Args;

use super::value::directory;

/// Where this host keeps its files.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "This host")]
pub struct StateDirArgs {
    /// Directory for locks, generated development secrets and the records of simulated containers.
    #[arg(long, env = "APP_STATE_DIR", default_value = ".app/state", value_name = "DIR",
          value_parser = directory("/var/lib/app"))]
    pub state_dir: PathBuf,
}
