//! How keys are checked: `IDENTITY_CACHE`, `IDENTITY_L1`.

use clap::Args;

use super::{ConfigError, setting};

#[derive(Args, Clone, Debug)]
pub struct IdentityArgs {
    /// Keep keys in Redis; `off`: ask Postgres on each request.
    #[arg(long, env = "IDENTITY_CACHE", default_value = "on", value_name = "on|off")]
    identity_cache: String,
    /// Keep keys in the process as well.
    #[arg(long, env = "IDENTITY_L1", default_value = "on", value_name = "on|off")]
    identity_l1: String,
}

#[derive(Clone, Copy, Debug)]
pub struct IdentityConfig {
    pub cache: bool,
    pub l1: bool,
}

impl IdentityArgs {
    /// # Errors
    /// The first setting that is wrong.
    pub fn resolve(&self) -> Result<IdentityConfig, ConfigError> {
        Ok(IdentityConfig {
            cache: setting("IDENTITY_CACHE", &self.identity_cache, "on").flag()?,
            l1: setting("IDENTITY_L1", &self.identity_l1, "on").flag()?,
        })
    }
}
