//! How often a key may ask: GCRA, counted in Redis for all replicas together; while Redis does not answer, by each alone.
//!
//! One number per key is kept: when the key, at its steady rate, will have used up what it was given. A request is
//! allowed while that is at most `burst` requests ahead of now.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use fred::types::{Value as Argument, scripts::Script};
use serde_json::Value;

use super::Caller;
use crate::{
    config::{identity::RateLimit, redis::RedisConfig},
    core::{
        breaker::Breaker,
        id::{ClusterId, KeyId},
        redis::{PerThread, RedisError, RedisKey},
    },
};

const TIMEOUT: Duration = Duration::from_millis(50);
/// Keys counted in this process, at most; those that are idle go first.
const MAX_LOCAL: usize = 100_000;

const SCRIPT: &str = "
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local each, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local used = math.min(math.max(tonumber(redis.call('GET', KEYS[1]) or now), now), now + each * burst)
local ahead = used + each - now
if ahead > each * burst then return {0, 0, ahead - each * burst, used - now} end
redis.call('SET', KEYS[1], string.format('%d', used + each), 'PX', math.ceil(ahead / 1000))
return {1, math.floor((each * burst - ahead) / each), 0, ahead}";

/// What a request is told about its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    pub allowed: bool,
    /// Requests at once.
    pub limit: u32,
    /// Of these, how many are left now.
    pub remaining: u32,
    /// How long it takes until a used-up burst is there again.
    pub window: Duration,
    /// Until all of them are there again.
    pub reset: Duration,
    /// Until the next one is; zero when allowed.
    pub retry_after: Duration,
}

#[derive(Clone)]
pub struct Limiter(Arc<Inner>);

struct Inner {
    general: RateLimit,
    clients: PerThread,
    script: Script,
    cluster: ClusterId,
    breaker: Breaker,
    local: Mutex<HashMap<KeyId, Instant>>,
}

impl Limiter {
    /// `general`: of keys that have no limit of their own.
    pub fn new(general: RateLimit, config: &RedisConfig, cluster: ClusterId) -> Self {
        Self(Arc::new(Inner {
            general,
            clients: PerThread::new(config, TIMEOUT),
            script: Script::from_lua(SCRIPT),
            cluster,
            breaker: Breaker::default(),
            local: Mutex::default(),
        }))
    }

    /// When a thread begins to serve: its first question need not wait for a connection.
    ///
    /// # Errors
    /// When a client cannot be built.
    pub fn open_thread(&self) -> Result<(), RedisError> {
        self.0.clients.open()
    }

    /// Counts a request of this caller. `None`: it has no limit.
    pub async fn count(&self, caller: &Caller) -> Option<Allowance> {
        let limit = self.of(&caller.limits)?;
        if self.0.breaker.allows(Instant::now()) {
            // Boxed: most keys have no limit, and need no room for this.
            match Box::pin(self.in_redis(caller.key, limit)).await {
                Ok(allowance) => {
                    self.0.breaker.succeeded();
                    return Some(allowance);
                }
                Err(error) => {
                    self.0.breaker.failed(Instant::now());
                    tracing::debug!(%error, "redis does not count; counting here");
                }
            }
        }
        metrics::counter!("rate_limit_local_total").increment(1);
        let mut local = self.0.local.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if local.len() >= MAX_LOCAL {
            local.retain(|_, used| *used > now);
            // All of them at it: a fresh start for all is better than room for ever more.
            if local.len() >= MAX_LOCAL {
                local.clear();
            }
        }
        Some(gcra(local.entry(caller.key).or_insert(now), now, limit))
    }

    /// Whether a key with the limits `new` may ask no more often than one with `own`.
    pub fn covers(&self, own: &Value, new: &Value) -> bool {
        match (self.of(own), self.of(new)) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(new)) => new.rps <= own.rps && new.burst <= own.burst,
        }
    }

    /// The limit of a key; `None`: it has none.
    fn of(&self, limits: &Value) -> Option<RateLimit> {
        let limit = own(limits).unwrap_or(self.0.general);
        (limit.rps > 0.0).then_some(limit)
    }

    async fn in_redis(&self, key: KeyId, limit: RateLimit) -> Result<Allowance, RedisError> {
        let name = RedisKey::RateLimit(key).name(self.0.cluster);
        let each = i64::try_from(each(limit).as_micros()).unwrap_or(i64::MAX);
        let arguments: Vec<Argument> = vec![each.into(), i64::from(limit.burst).into()];
        let (allowed, remaining, retry_us, reset_us): (i64, i64, i64, i64) =
            self.0.clients.ask(|redis| self.0.script.evalsha_with_reload(redis, name, arguments)).await?;
        let micros = |us: i64| Duration::from_micros(u64::try_from(us).unwrap_or_default());
        Ok(Allowance {
            allowed: allowed == 1,
            limit: limit.burst,
            remaining: u32::try_from(remaining).unwrap_or_default(),
            window: crate::core::identity::rate_limit::each(limit) * limit.burst,
            reset: micros(reset_us),
            retry_after: micros(retry_us),
        })
    }
}

/// A key's own limit, as it is kept with the key.
pub fn stored(limit: RateLimit) -> Value {
    serde_json::json!({"rps": limit.rps, "burst": limit.burst})
}

/// A key's own limit, if it has one that makes sense.
fn own(limits: &Value) -> Option<RateLimit> {
    let burst = limits.get("burst")?.as_u64()?;
    RateLimit::new(limits.get("rps")?.as_f64()?, u32::try_from(burst).ok()?)
}

fn each(limit: RateLimit) -> Duration {
    Duration::from_secs_f64(1.0 / limit.rps)
}

/// The same as the script. `used`: when what was given will have been used up.
fn gcra(used: &mut Instant, now: Instant, limit: RateLimit) -> Allowance {
    let each = each(limit);
    let most = each * limit.burst;
    // Never further ahead than the limit lets it come: it may have been a larger one, or another clock.
    *used = (*used).max(now).min(now + most);
    let ahead = *used + each - now;
    if ahead > most {
        let retry_after = ahead - most;
        let reset = *used - now;
        return Allowance { allowed: false, limit: limit.burst, remaining: 0, window: most, reset, retry_after };
    }
    *used += each;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most burst")]
    let remaining = ((most - ahead).as_secs_f64() / each.as_secs_f64() + 1e-9) as u32;
    let retry_after = Duration::ZERO;
    Allowance { allowed: true, limit: limit.burst, remaining, window: most, reset: ahead, retry_after }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_then_the_steady_rate() {
        let (limit, start) = (RateLimit { rps: 10.0, burst: 3 }, Instant::now());
        let mut used = start;
        let remaining: Vec<u32> = (0..3).map(|_| gcra(&mut used, start, limit)).map(|a| a.remaining).collect();
        assert_eq!(remaining, [2, 1, 0]);
        let refused = gcra(&mut used, start, limit);
        assert!(!refused.allowed);
        assert_eq!((refused.retry_after, refused.reset), (Duration::from_millis(100), Duration::from_millis(300)));
        assert!(gcra(&mut used, start + refused.retry_after, limit).allowed, "one each tenth of a second");
        assert!(!gcra(&mut used, start + refused.retry_after, limit).allowed);
        assert_eq!(gcra(&mut used, start + Duration::from_secs(60), limit).remaining, 2, "never more than the burst");
    }

    #[test]
    fn a_smaller_limit_is_in_force_at_once_and_does_not_make_up_for_the_larger_one() {
        let (large, small) = (RateLimit { rps: 1.0, burst: 1000 }, RateLimit { rps: 1.0, burst: 2 });
        let start = Instant::now();
        let mut used = start;
        assert!((0..1000).all(|_| gcra(&mut used, start, large).allowed));
        let refused = gcra(&mut used, start, small);
        assert_eq!((refused.allowed, refused.retry_after), (false, Duration::from_secs(1)));
    }

    #[test]
    fn limits_that_make_no_sense_are_none() {
        let of = |rps: f64, burst: u64| own(&serde_json::json!({"rps": rps, "burst": burst}));
        assert_eq!(of(0.5, 3), Some(RateLimit { rps: 0.5, burst: 3 }));
        assert_eq!(of(0.0, 1), Some(RateLimit { rps: 0.0, burst: 1 }), "unlimited");
        assert_eq!([of(-1.0, 1), of(1e-300, 1), of(1e7, 1), of(1.0, 0), of(1.0, 1 << 40)], [None; 5]);
        assert_eq!(own(&serde_json::json!({})), None);
    }
}
