//! How keys are checked: `IDENTITY_CACHE`, `IDENTITY_L1`; how often each may ask: `RATE_LIMIT_RPS`, `RATE_LIMIT_BURST`, and
//! for one key `APP_KEY_LIMIT_RPS`, `APP_KEY_LIMIT_BURST`.

use clap::Args;

use super::{ConfigError, Setting, setting};

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

/// The limit that a key gets when it is made, as `limits` of `POST /keys`.
#[derive(Args, Clone, Debug)]
pub struct KeyLimitArgs {
    /// Requests per second of this key over all replicas, 0: no limit; together with --limit-burst. Empty: as often as
    /// the server lets any key.
    #[arg(long, env = "APP_KEY_LIMIT_RPS", default_value = "", value_name = "N")]
    limit_rps: String,
    /// Requests of this key at once; together with --limit-rps.
    #[arg(long, env = "APP_KEY_LIMIT_BURST", default_value = "", value_name = "N")]
    limit_burst: String,
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

    fn read_rps(setting: &Setting<'_>) -> Result<f64, ConfigError> {
        let rps = setting.between(0.0, Self::MOST_RPS)?;
        let sane = Self::new(rps, 1).is_some();
        sane.then_some(rps).ok_or_else(|| {
            setting.wrong(format_args!("\"{}\" is below {}, and not 0 (no limit)", setting.text, Self::LEAST_RPS))
        })
    }

    fn read_burst(setting: &Setting<'_>) -> Result<u32, ConfigError> {
        setting.between(1, Self::MOST_BURST)
    }
}

impl IdentityArgs {
    /// # Errors
    /// The first setting that is wrong.
    pub fn resolve(&self) -> Result<IdentityConfig, ConfigError> {
        let rate_limit = RateLimit {
            rps: RateLimit::read_rps(&setting("RATE_LIMIT_RPS", &self.rate_limit_rps, "50"))?,
            burst: RateLimit::read_burst(&setting("RATE_LIMIT_BURST", &self.rate_limit_burst, "100"))?,
        };
        Ok(IdentityConfig {
            cache: setting("IDENTITY_CACHE", &self.identity_cache, "on").flag()?,
            l1: setting("IDENTITY_L1", &self.identity_l1, "on").flag()?,
            rate_limit,
        })
    }
}

impl KeyLimitArgs {
    /// `None`: the key has no limit of its own.
    ///
    /// # Errors
    /// The first setting that is wrong, or the one that is missing beside the other.
    pub fn resolve(&self) -> Result<Option<RateLimit>, ConfigError> {
        let rps = setting("APP_KEY_LIMIT_RPS", &self.limit_rps, "5");
        let burst = setting("APP_KEY_LIMIT_BURST", &self.limit_burst, "20");
        let missing = |setting: &Setting<'_>, beside: &Setting<'_>| {
            setting.wrong(format_args!("is needed when {} is given", beside.variable))
        };
        match (rps.text.trim(), burst.text.trim()) {
            ("", "") => Ok(None),
            ("", _) => RateLimit::read_burst(&burst).and_then(|_| Err(missing(&rps, &burst))),
            (_, "") => RateLimit::read_rps(&rps).and_then(|_| Err(missing(&burst, &rps))),
            _ => Ok(Some(RateLimit { rps: RateLimit::read_rps(&rps)?, burst: RateLimit::read_burst(&burst)? })),
        }
    }
}
