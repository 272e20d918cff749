//! How often a key may ask: GCRA, counted in Redis for all replicas together; while Redis does not answer, by each alone.
//!
//! One number per key is kept: when the key, at its steady rate, will have used up what it was given. A request is
//! allowed while that is at most `burst` requests ahead of now.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use fred::{
    clients::Pool,
    types::{Value, scripts::Script},
};

use super::{Caller, cache::breaker::Breaker};
use crate::{
    config::{identity::RateLimit, redis::RedisConfig},
    core::{
        id::{ClusterId, KeyId},
        redis::{self, RedisError},
    },
};

const TIMEOUT: Duration = Duration::from_millis(50);
const CONNECTIONS: usize = 2;
/// Keys counted in this process, at most; those that are idle go first.
const MAX_LOCAL: usize = 100_000;

const SCRIPT: &str = "
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local each, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local used = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
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
    /// Until all of them are there again.
    pub reset: Duration,
    /// Until the next one is; zero when allowed.
    pub retry_after: Duration,
}

#[derive(Clone)]
pub struct Limiter(Arc<Inner>);

struct Inner {
    general: RateLimit,
    pool: Pool,
    script: Script,
    cluster: ClusterId,
    breaker: Breaker,
    local: Mutex<HashMap<KeyId, Instant>>,
}

impl Limiter {
    /// # Errors
    /// When the client cannot be built; not when Redis is away.
    pub fn new(general: RateLimit, config: &RedisConfig, cluster: ClusterId) -> Result<Self, RedisError> {
        Ok(Self(Arc::new(Inner {
            general,
            pool: redis::pool(config, TIMEOUT, CONNECTIONS)?,
            script: Script::from_lua(SCRIPT),
            cluster,
            breaker: Breaker::default(),
            local: Mutex::default(),
        })))
    }

    /// Counts a request of this caller. `None`: it has no limit.
    pub async fn count(&self, caller: &Caller) -> Option<Allowance> {
        let limit = self.of(caller)?;
        if self.0.breaker.allows(Instant::now()) {
            match tokio::time::timeout(TIMEOUT, self.in_redis(caller.key, limit)).await {
                Ok(Ok(allowance)) => {
                    self.0.breaker.succeeded();
                    return Some(allowance);
                }
                failed => {
                    self.0.breaker.failed(Instant::now());
                    tracing::debug!(?failed, "redis does not count; counting here");
                }
            }
        }
        metrics::counter!("rate_limit_local_total").increment(1);
        let mut local = self.0.local.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if local.len() >= MAX_LOCAL {
            local.retain(|_, used| *used > now);
        }
        Some(gcra(local.entry(caller.key).or_insert(now), now, limit))
    }

    fn of(&self, caller: &Caller) -> Option<RateLimit> {
        let own = |name: &str| caller.limits.get(name).and_then(serde_json::Value::as_f64);
        let rps = own("rps").unwrap_or(self.0.general.rps);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let burst = own("burst").map_or(self.0.general.burst, |burst| burst as u32).max(1);
        (rps > 0.0).then_some(RateLimit { rps, burst })
    }

    async fn in_redis(&self, key: KeyId, limit: RateLimit) -> Result<Allowance, fred::error::Error> {
        let name = format!("app:{}:rate:{key}", self.0.cluster);
        let each = i64::try_from(each(limit).as_micros()).unwrap_or(i64::MAX);
        let arguments: Vec<Value> = vec![each.into(), i64::from(limit.burst).into()];
        let (allowed, remaining, retry_us, reset_us): (i64, i64, i64, i64) =
            self.0.script.evalsha_with_reload(self.0.pool.next(), name, arguments).await?;
        let micros = |us: i64| Duration::from_micros(u64::try_from(us).unwrap_or_default());
        Ok(Allowance {
            allowed: allowed == 1,
            limit: limit.burst,
            remaining: u32::try_from(remaining).unwrap_or_default(),
            reset: micros(reset_us),
            retry_after: micros(retry_us),
        })
    }
}

fn each(limit: RateLimit) -> Duration {
    Duration::from_secs_f64(1.0 / limit.rps)
}

/// The same as the script. `used`: when what was given will have been used up.
fn gcra(used: &mut Instant, now: Instant, limit: RateLimit) -> Allowance {
    let each = each(limit);
    *used = (*used).max(now);
    let ahead = *used + each - now;
    let most = each * limit.burst;
    if ahead > most {
        let retry_after = ahead - most;
        return Allowance { allowed: false, limit: limit.burst, remaining: 0, reset: *used - now, retry_after };
    }
    *used += each;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most burst")]
    let remaining = ((most - ahead).as_secs_f64() / each.as_secs_f64() + 1e-9) as u32;
    Allowance { allowed: true, limit: limit.burst, remaining, reset: ahead, retry_after: Duration::ZERO }
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
}
