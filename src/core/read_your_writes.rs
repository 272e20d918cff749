//! How fresh a tenant's lists must be: a caller sees its own writes, others' may lag behind.
//!
//! Promises: a tenant that wrote within the last five seconds, through whichever process, has its lists from the
//! primary. What Redis does not know for certain (it is away, it lost its data, it missed a write) is taken for a write.
//! Without a read replica nothing is noted and nobody is asked. Refuses: measuring how far the replica lags.

use std::{
    collections::HashMap,
    fmt::Display,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use fred::{
    clients::Client,
    interfaces::KeysInterface,
    types::{Expiration, scripts::Script},
};

use super::{
    breaker::Breaker,
    db::Consistency,
    id::{ClusterId, TenantId},
    redis::{self, RedisError},
};
use crate::config::redis::RedisConfig;

/// A replica that lags longer than this is out of order.
const WINDOW: Duration = Duration::from_secs(5);
const WINDOW_MS: i64 = 5_000;
const PRUNE_ABOVE: usize = 10_000;
/// How long a write waits for Redis at most: as long as for the bell, which is rung meanwhile.
const TELL: Duration = Duration::from_millis(100);
/// How long a list waits for Redis at most.
const ASK: Duration = Duration::from_millis(50);
const RETRY: Duration = Duration::from_millis(200);
/// In place of a tenant: everybody.
const ALL: &str = "all";

// A server that was started or emptied a moment ago, or took another's place, has not heard of every write: for as long
// as a write counts, anybody may have written.
const WROTE: &str = "
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
if redis.call('GET', KEYS[3]) ~= run then
  redis.call('SET', KEYS[3], run)
  redis.call('SET', KEYS[2], 1, 'PX', ARGV[1])
end
return redis.call('EXISTS', KEYS[1], KEYS[2])";

/// Which tenants wrote a moment ago: noted here, and in Redis for the other processes. Cheap to clone.
#[derive(Clone)]
pub struct ReadYourWrites(Option<Arc<Inner>>);

struct Inner {
    local: Mutex<HashMap<TenantId, Instant>>,
    client: Client,
    cluster: ClusterId,
    breaker: Breaker,
    record_write: Script,
    suspecting: AtomicBool,
}

impl ReadYourWrites {
    /// `has_replica`: whether there is a read replica, so that lists can lag at all.
    ///
    /// # Errors
    /// When the client cannot be built; not when Redis is away.
    pub fn new(has_replica: bool, config: &RedisConfig, cluster: ClusterId) -> Result<Self, RedisError> {
        if !has_replica {
            return Ok(Self(None));
        }
        Ok(Self(Some(Arc::new(Inner {
            local: Mutex::default(),
            client: redis::client(config, TELL)?,
            cluster,
            breaker: Breaker::default(),
            record_write: Script::from_lua(WROTE),
            suspecting: AtomicBool::default(),
        }))))
    }

    /// Notes a committed write of what belongs to this tenant; to be awaited before it is answered.
    pub async fn record_write(&self, tenant: TenantId) {
        let Some(inner) = &self.0 else { return };
        inner.note(tenant);
        if inner.breaker.is_open() || !inner.tell(tenant).await {
            inner.suspect_all();
        }
    }

    /// What a list for this tenant may be read from.
    pub async fn of(&self, tenant: TenantId) -> Consistency {
        match &self.0 {
            Some(inner) if inner.noted(tenant) || inner.may_have_written(tenant).await => Consistency::Primary,
            _ => Consistency::Any,
        }
    }
}

impl Inner {
    fn note(&self, tenant: TenantId) {
        let mut writers = self.local.lock().unwrap_or_else(PoisonError::into_inner);
        if writers.len() > PRUNE_ABOVE {
            writers.retain(|_, at| at.elapsed() < WINDOW);
        }
        writers.insert(tenant, Instant::now());
    }

    fn noted(&self, tenant: TenantId) -> bool {
        let writers = self.local.lock().unwrap_or_else(PoisonError::into_inner);
        writers.get(&tenant).is_some_and(|at| at.elapsed() < WINDOW)
    }

    /// Whether Redis has taken it.
    async fn tell(&self, who: impl Display) -> bool {
        let set = self.client.set::<(), _, _>(self.name(who), 1, Some(Expiration::PX(WINDOW_MS)), None, false);
        self.authorized(TELL, set).await.is_some()
    }

    /// A write that Redis does not know of: as soon as it can be told anything, it is told that anybody may have written.
    /// Sent whatever the breaker says: a server that hangs reads it as soon as it goes on.
    fn suspect_all(self: &Arc<Self>) {
        if self.suspecting.swap(true, Ordering::Relaxed) {
            return;
        }
        let inner = self.clone();
        tokio::spawn(async move {
            while !inner.tell(ALL).await {
                tokio::time::sleep(RETRY).await;
            }
            inner.suspecting.store(false, Ordering::Relaxed);
        });
    }

    async fn may_have_written(&self, tenant: TenantId) -> bool {
        if !self.breaker.allows(Instant::now()) {
            return true;
        }
        let keys = vec![self.name(tenant), self.name(ALL), self.name("run")];
        let ask = self.record_write.evalsha_with_reload::<i64, _, _>(&self.client, keys, vec![WINDOW_MS]);
        self.authorized(ASK, ask).await != Some(0)
    }

    /// The answer, if there is one in time; the breaker hears of it.
    async fn authorized<T>(
        &self,
        limit: Duration,
        asked: impl Future<Output = Result<T, fred::error::Error>>,
    ) -> Option<T> {
        match tokio::time::timeout(limit, asked).await {
            Ok(Ok(answer)) => {
                self.breaker.succeeded();
                Some(answer)
            }
            failed => {
                self.breaker.failed(Instant::now());
                tracing::debug!(failed = ?failed.map(|answer| answer.err()), "redis does not tell who wrote");
                None
            }
        }
    }

    fn name(&self, who: impl Display) -> String {
        format!("app:{}:record_write:{who}", self.cluster)
    }
}
