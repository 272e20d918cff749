//! `IDENTITY_CACHE`, `IDENTITY_L1`: where API keys are cached. `RATE_LIMIT_*`: how often each key may send requests.
//! `APP_KEY_LIMIT_*`: the limit that `app keys create` gives to one key.

use clap::Args;

use super::{
    ConfigError,
    value::{Optional, Value, flag, number, value},
};

const RPS_EXAMPLE: &str = "5";
const BURST_EXAMPLE: &str = "20";

/// How `app serve` checks keys.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "API keys")]
pub struct IdentityArgs {
    /// Caches API keys in Redis; `off` reads Postgres on each request.
    #[arg(long = "identity-cache", env = "IDENTITY_CACHE", default_value = "on", value_name = "on|off",
          action = clap::ArgAction::Set, value_parser = flag("on"))]
    identity_cache: bool,
    /// Caches API keys in the process as well.
    #[arg(long = "identity-l1", env = "IDENTITY_L1", default_value = "on", value_name = "on|off",
          action = clap::ArgAction::Set, value_parser = flag("on"))]
    identity_l1: bool,
    /// Requests per second of one key over all replicas, unless the key has a limit of its own; 0 means no limit.
    #[arg(long = "rate-limit-rps", env = "RATE_LIMIT_RPS", default_value = "0", value_name = "N",
          value_parser = rps("50"))]
    rate_limit_rps: f64,
    /// Requests that one key may send at once.
    #[arg(long = "rate-limit-burst", env = "RATE_LIMIT_BURST", default_value = "100", value_name = "N",
          value_parser = burst("100"))]
    rate_limit_burst: u32,
}

/// The limit that a key gets when it is created, as `limits` of `POST /keys`.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "The key to create")]
pub struct KeyLimitArgs {
    /// Requests per second of this key over all replicas, 0 means no limit; together with --limit-burst. Empty: the
    /// server's general limit applies.
    #[arg(long, env = "APP_KEY_LIMIT_RPS", default_value = "", value_name = "N",
          value_parser = rps(RPS_EXAMPLE).optional())]
    limit_rps: Optional<f64>,
    /// Requests that this key may send at once; together with --limit-rps.
    #[arg(long, env = "APP_KEY_LIMIT_BURST", default_value = "", value_name = "N",
          value_parser = burst(BURST_EXAMPLE).optional())]
    limit_burst: Optional<u32>,
}

/// The caching and the rate limits of keys.
#[derive(Clone, Copy, Debug)]
pub struct IdentityConfig {
    /// Whether keys are cached in Redis.
    pub cache: bool,
    /// Whether keys are cached in the process.
    pub l1: bool,
    /// The limit of keys that have none of their own.
    pub rate_limit: RateLimit,
}

/// The rate at which one key may send requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// Requests per second; 0 means no limit.
    pub rps: f64,
    /// Requests at once.
    pub burst: u32,
}

impl RateLimit {
    /// The highest rate, in requests per second.
    pub const RPS_MAX: f64 = 1e6;
    /// The lowest rate above zero, in requests per second: one request in a quarter of an hour.
    pub const RPS_MIN: f64 = 0.001;
    /// The largest burst, in requests.
    pub const BURST_MAX: u32 = 1_000_000;

    /// Returns the limit, or `None` when one of the numbers is out of range.
    pub fn new(rps: f64, burst: u32) -> Option<Self> {
        let in_range = rps == 0.0 || (Self::RPS_MIN..=Self::RPS_MAX).contains(&rps);
        (in_range && (1..=Self::BURST_MAX).contains(&burst)).then_some(Self { rps, burst })
    }
}

fn rps(example: &'static str) -> Value<f64> {
    let (least, most) = (RateLimit::RPS_MIN, RateLimit::RPS_MAX);
    value(example, format!("0, or {least} to {most}"), move |text| {
        let rps = text.trim().parse().ok().filter(|rps| (0.0..=most).contains(rps));
        let rps = rps.ok_or_else(|| format!("\"{text}\" is not a number from 0 to {most}"))?;
        let limit = RateLimit::new(rps, 1).ok_or_else(|| format!("\"{text}\" is below {least}, and not 0 (no limit)"));
        limit.map(|limit| limit.rps)
    })
}

fn burst(example: &'static str) -> Value<u32> {
    number(1, RateLimit::BURST_MAX, example)
}

impl IdentityArgs {
    /// Returns how keys are checked.
    pub fn resolve(&self) -> IdentityConfig {
        let rate_limit = RateLimit { rps: self.rate_limit_rps, burst: self.rate_limit_burst };
        IdentityConfig { cache: self.identity_cache, l1: self.identity_l1, rate_limit }
    }
}

impl KeyLimitArgs {
    /// Returns the key's own limit; `None` when it has none.
    ///
    /// # Errors
    /// `ConfigError` when one of the two variables is given without the other.
    pub fn resolve(&self) -> Result<Option<RateLimit>, ConfigError> {
        let missing = |variable, other, example| {
            Err(ConfigError::new(variable, format_args!("is needed when {other} is given"), example))
        };
        match (self.limit_rps, self.limit_burst) {
            (None, None) => Ok(None),
            (None, Some(_)) => missing("APP_KEY_LIMIT_RPS", "APP_KEY_LIMIT_BURST", RPS_EXAMPLE),
            (Some(_), None) => missing("APP_KEY_LIMIT_BURST", "APP_KEY_LIMIT_RPS", BURST_EXAMPLE),
            (Some(rps), Some(burst)) => Ok(Some(RateLimit { rps, burst })),
        }
    }
}
