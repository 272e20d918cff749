//! How keys are checked: `IDENTITY_CACHE`, `IDENTITY_L1`; how often each may ask: `RATE_LIMIT_RPS`, `RATE_LIMIT_BURST`.

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
    /// Requests per second of one key over all replicas, unless the key has a limit of its own; 0: no limit.
    #[arg(long, env = "RATE_LIMIT_RPS", default_value = "0", value_name = "N")]
    rate_limit_rps: String,
    /// Requests of one key at once.
    #[arg(long, env = "RATE_LIMIT_BURST", default_value = "100", value_name = "N")]
    rate_limit_burst: String,
}

#[derive(Clone, Copy, Debug)]
pub struct IdentityConfig {
    pub cache: bool,
    pub l1: bool,
    pub rate_limit: RateLimit,
}

/// Requests per second, and at once. `rps` 0: no limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    pub rps: f64,
    pub burst: u32,
}

impl IdentityArgs {
    /// # Errors
    /// The first setting that is wrong.
    pub fn resolve(&self) -> Result<IdentityConfig, ConfigError> {
        Ok(IdentityConfig {
            cache: setting("IDENTITY_CACHE", &self.identity_cache, "on").flag()?,
            l1: setting("IDENTITY_L1", &self.identity_l1, "on").flag()?,
            rate_limit: RateLimit {
                rps: setting("RATE_LIMIT_RPS", &self.rate_limit_rps, "50").between(0.0, 1e6)?,
                burst: setting("RATE_LIMIT_BURST", &self.rate_limit_burst, "100").between(1, 1_000_000)?,
            },
        })
    }
}
