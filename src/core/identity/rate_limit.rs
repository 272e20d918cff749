//! The rate limit of keys: GCRA, counted in Redis for all replicas together; while Redis does not answer, in each
//! process.
//!
//! One number per key is stored: the theoretical arrival time (TAT), when the key will have used up its allowance at
//! its steady rate. A request is allowed while the TAT is at most `burst` requests ahead of now. See "Generic cell rate
//! algorithm" in ITU-T I.371. The script is our own: `redis-cell` is a module that a plain Redis does not have, and
//! `governor` counts in one process only.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use fred::types::{Value as Argument, scripts::Script};
use parking_lot::Mutex;

use super::caller::Caller;
use crate::{
    config::{identity::RateLimit, redis::RedisConfig},
    core::{
        breaker::Breaker,
        id::{ClusterId, KeyId},
        redis::{PerThread, RedisError, RedisKey},
    },
};

const COUNT_TIMEOUT: Duration = Duration::from_millis(50);
/// Keys counted in this process, at most.
const LOCAL_KEYS_MAX: usize = 100_000;

const GCRA: &str = include_str!("gcra.lua");

/// What a request learns about its key's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Whether the request may go on.
    pub allowed: bool,
    /// Requests at once.
    pub limit: u32,
    /// How many of these are left now.
    pub remaining: u32,
    /// How long a used-up burst takes to be available again.
    pub window: Duration,
    /// When the whole burst is available again.
    pub reset: Duration,
    /// When the next request is allowed; zero when this one is.
    pub retry_after: Duration,
}

/// Counts requests by key. Cheap to clone.
#[derive(Clone)]
pub struct RateLimiter(Arc<Inner>);

struct Inner {
    general: RateLimit,
    clients: PerThread,
    script: Script,
    cluster: ClusterId,
    breaker: Breaker,
    /// The TAT of each key counted here.
    local: Mutex<HashMap<KeyId, Instant>>,
}

impl RateLimiter {
    /// Makes a limiter. `general`: the limit of keys without their own.
    pub fn new(general: RateLimit, config: &RedisConfig, cluster: ClusterId) -> Self {
        Self(Arc::new(Inner {
            general,
            clients: PerThread::new(config, COUNT_TIMEOUT),
            script: Script::from_lua(GCRA),
            cluster,
            breaker: Breaker::default(),
            local: Mutex::default(),
        }))
    }

    /// Connects the calling thread to Redis, so that its first request does not wait for a connection.
    ///
    /// # Errors
    /// When a client cannot be built.
    pub fn open_thread(&self) -> Result<(), RedisError> {
        self.0.clients.open()
    }

    /// Counts a request of this caller; `None`: its key has no limit.
    pub async fn count(&self, caller: &Caller) -> Option<Allowance> {
        let limit = caller.limits.effective(self.0.general)?;
        if self.0.breaker.allows(Instant::now()) {
            // Boxed: most keys have no limit, and need no room for this future.
            match Box::pin(self.count_in_redis(caller.key, limit)).await {
                Ok(allowance) => {
                    self.0.breaker.succeeded();
                    return Some(allowance);
                }
                Err(error) => {
                    self.0.breaker.failed(Instant::now());
                    tracing::debug!(%error, "redis did not count a request, counting it in this process");
                }
            }
        }
        metrics::counter!("rate_limit_local_total").increment(1);
        Some(self.count_locally(caller.key, limit))
    }

    fn count_locally(&self, key: KeyId, limit: RateLimit) -> Allowance {
        let mut local = self.0.local.lock();
        let now = Instant::now();
        if local.len() >= LOCAL_KEYS_MAX {
            local.retain(|_, tat| *tat > now);
            // All keys are in use: starting over for all of them is better than growing without bound.
            if local.len() >= LOCAL_KEYS_MAX {
                local.clear();
            }
        }
        gcra(local.entry(key).or_insert(now), now, limit)
    }

    async fn count_in_redis(&self, key: KeyId, limit: RateLimit) -> Result<Allowance, RedisError> {
        let name = RedisKey::RateLimit(key).name(self.0.cluster);
        let interval_us = i64::try_from(interval(limit).as_micros()).unwrap_or(i64::MAX);
        let arguments: Vec<Argument> = vec![interval_us.into(), i64::from(limit.burst).into()];
        let (allowed, remaining, retry_us, reset_us): (i64, i64, i64, i64) =
            self.0.clients.call(|redis| self.0.script.evalsha_with_reload(redis, name, arguments)).await?;
        let micros = |us: i64| Duration::from_micros(u64::try_from(us).unwrap_or_default());
        Ok(Allowance {
            allowed: allowed == 1,
            limit: limit.burst,
            remaining: u32::try_from(remaining).unwrap_or_default(),
            window: interval(limit) * limit.burst,
            reset: micros(reset_us),
            retry_after: micros(retry_us),
        })
    }
}

/// Returns the time between two requests at the steady rate.
fn interval(limit: RateLimit) -> Duration {
    Duration::from_secs_f64(1.0 / limit.rps)
}

/// Does the same as the script.
fn gcra(tat: &mut Instant, now: Instant, limit: RateLimit) -> Allowance {
    let interval = interval(limit);
    let window = interval * limit.burst;
    // Never further ahead than the limit allows: it may have been larger before, or counted by another clock.
    *tat = (*tat).max(now).min(now + window);
    let ahead = *tat + interval - now;
    if ahead > window {
        let (retry_after, reset) = (ahead - window, *tat - now);
        return Allowance { allowed: false, limit: limit.burst, remaining: 0, window, reset, retry_after };
    }
    *tat += interval;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most burst")]
    let remaining = ((window - ahead).as_secs_f64() / interval.as_secs_f64() + 1e-9) as u32;
    let retry_after = Duration::ZERO;
    Allowance { allowed: true, limit: limit.burst, remaining, window, reset: ahead, retry_after }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_is_allowed_then_the_steady_rate() {
        let (limit, start) = (RateLimit { rps: 10.0, burst: 3 }, Instant::now());
        let mut tat = start;

        let remaining: Vec<u32> = (0..3).map(|_| gcra(&mut tat, start, limit)).map(|a| a.remaining).collect();
        let refused = gcra(&mut tat, start, limit);

        assert_eq!(remaining, [2, 1, 0]);
        assert!(!refused.allowed);
        assert_eq!((refused.retry_after, refused.reset), (Duration::from_millis(100), Duration::from_millis(300)));
        assert!(gcra(&mut tat, start + refused.retry_after, limit).allowed, "one each tenth of a second");
        assert!(!gcra(&mut tat, start + refused.retry_after, limit).allowed);
        assert_eq!(gcra(&mut tat, start + Duration::from_secs(60), limit).remaining, 2, "never more than the burst");
    }

    #[test]
    fn smaller_limit_is_in_force_at_once() {
        let (large, small) = (RateLimit { rps: 1.0, burst: 1000 }, RateLimit { rps: 1.0, burst: 2 });
        let start = Instant::now();
        let mut tat = start;
        assert!((0..1000).all(|_| gcra(&mut tat, start, large).allowed));

        let refused = gcra(&mut tat, start, small);

        assert_eq!((refused.allowed, refused.retry_after), (false, Duration::from_secs(1)), "not after 998 s");
    }
}
