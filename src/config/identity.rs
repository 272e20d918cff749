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

impl RateLimit {
    pub const MOST_RPS: f64 = 1e6;
    /// One request in a quarter of an hour: what is slower is no rate.
    pub const LEAST_RPS: f64 = 0.001;
    pub const MOST_BURST: u32 = 1_000_000;

    /// `None`: out of range.
    pub fn new(rps: f64, burst: u32) -> Option<Self> {
        let sane = rps == 0.0 || (Self::LEAST_RPS..=Self::MOST_RPS).contains(&rps);
        (sane && (1..=Self::MOST_BURST).contains(&burst)).then_some(Self { rps, burst })
    }
}

impl IdentityArgs {
    /// # Errors
    /// The first setting that is wrong.
    pub fn resolve(&self) -> Result<IdentityConfig, ConfigError> {
        let rps = setting("RATE_LIMIT_RPS", &self.rate_limit_rps, "50");
        let burst = setting("RATE_LIMIT_BURST", &self.rate_limit_burst, "100").between(1, RateLimit::MOST_BURST)?;
        let rate_limit = RateLimit::new(rps.between(0.0, RateLimit::MOST_RPS)?, burst)
            .ok_or_else(|| rps.wrong(format_args!("\"{}\" is below {}", rps.text, RateLimit::LEAST_RPS)))?;
        Ok(IdentityConfig {
            cache: setting("IDENTITY_CACHE", &self.identity_cache, "on").flag()?,
            l1: setting("IDENTITY_L1", &self.identity_l1, "on").flag()?,
            rate_limit,
        })
    }
}
