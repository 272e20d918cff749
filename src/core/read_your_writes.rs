//! Read your writes: which server a tenant's lists are read from, so that a caller sees its own writes in them.
//!
//! The read replica may lag. A process that commits a write records it in its memory and in Redis, for the other processes
//! (`record_write`); a list of a tenant that wrote within the last five seconds is read from the primary
//! (`consistency_for`). Where no replica is configured, nothing is recorded and every read goes to the primary.
//!
//! An uncertain state of Redis counts as a write, so that its failures cost the primary some reads and never hide a
//! write: a server that does not answer, that was restarted or lost its data (it has another run id than the one it
//! stored), and one that missed a write (the process that could not record it records a write of *any* tenant as soon
//! as it can). The lag of the replica is not measured: one that lags longer than five seconds needs an operator.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use fred::{
    clients::Client,
    interfaces::KeysInterface,
    types::{Expiration, scripts::Script},
};
use parking_lot::Mutex;

use super::{
    breaker::Breaker,
    db::Consistency,
    id::{ClusterId, TenantId},
    redis::{self, RedisError, RedisKey},
};
use crate::config::redis::RedisConfig;

/// How long a write counts.
const WRITE_TTL: Duration = Duration::from_secs(5);
const WRITE_TTL_MS: i64 = 5_000;
/// Above this number of tenants in memory, those whose write no longer counts are removed.
const UNPRUNED_TENANTS_MAX: usize = 10_000;
/// How long a write waits for Redis at most: as long as for the notification, which is sent at the same time.
const RECORD_TIMEOUT: Duration = Duration::from_millis(100);
/// How long a list waits for Redis at most.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(50);
/// The pause between two attempts to record a write of any tenant.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

// KEYS: the tenant's write, a write of any tenant, the server's run id. ARGV: how long a write counts, in ms. A server that
// was started, emptied or promoted a moment ago does not know every write: for as long as a write counts, any tenant may
// have written.
const HAS_WRITTEN: &str = "
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
if redis.call('GET', KEYS[3]) ~= run then
  redis.call('SET', KEYS[3], run)
  redis.call('SET', KEYS[2], 1, 'PX', ARGV[1])
end
return redis.call('EXISTS', KEYS[1], KEYS[2])";

/// The tenants that wrote within the last five seconds. Cheap to clone.
#[derive(Clone)]
pub struct ReadYourWrites(Option<Arc<Inner>>);

struct Inner {
    local: Mutex<HashMap<TenantId, Instant>>,
    client: Client,
    cluster: ClusterId,
    breaker: Breaker,
    has_written: Script,
    /// Whether a task tries to record a write of any tenant.
    recording_any: AtomicBool,
}

impl ReadYourWrites {
    /// Returns an empty record. `has_replica`: whether lists can lag at all.
    ///
    /// # Errors
    /// When the client cannot be built; not when Redis cannot be reached.
    pub fn new(has_replica: bool, config: &RedisConfig, cluster: ClusterId) -> Result<Self, RedisError> {
        if !has_replica {
            return Ok(Self(None));
        }
        Ok(Self(Some(Arc::new(Inner {
            local: Mutex::default(),
            client: redis::client(config, RECORD_TIMEOUT)?,
            cluster,
            breaker: Breaker::default(),
            has_written: Script::from_lua(HAS_WRITTEN),
            recording_any: AtomicBool::default(),
        }))))
    }

    /// Records a committed write of a tenant. The request's answer must not be sent before it returns, after 100 ms at most.
    pub async fn record_write(&self, tenant: TenantId) {
        let Some(inner) = &self.0 else { return };
        inner.record_locally(tenant);
        if inner.breaker.is_open() || !inner.record(RedisKey::RecentWrite(tenant)).await {
            inner.record_any_in_background();
        }
    }

    /// Returns what a list of this tenant must be read with, after 50 ms at most.
    pub async fn consistency_for(&self, tenant: TenantId) -> Consistency {
        match &self.0 {
            Some(inner) if inner.wrote_here(tenant) || inner.may_have_written(tenant).await => Consistency::Primary,
            _ => Consistency::Any,
        }
    }
}

impl Inner {
    fn record_locally(&self, tenant: TenantId) {
        let mut writers = self.local.lock();
        if writers.len() > UNPRUNED_TENANTS_MAX {
            writers.retain(|_, at| at.elapsed() < WRITE_TTL);
        }
        writers.insert(tenant, Instant::now());
    }

    fn wrote_here(&self, tenant: TenantId) -> bool {
        self.local.lock().get(&tenant).is_some_and(|at| at.elapsed() < WRITE_TTL)
    }

    /// Records a write in Redis; returns whether Redis confirmed it.
    async fn record(&self, key: RedisKey<'_>) -> bool {
        let expiration = Some(Expiration::PX(WRITE_TTL_MS));
        let set = self.client.set::<(), _, _>(key.name(self.cluster), 1, expiration, None, false);
        self.within(RECORD_TIMEOUT, set).await.is_some()
    }

    /// Records a write of any tenant as soon as Redis can be reached, since it may have missed one. The command is sent even
    /// while the breaker is open: a server that hangs executes it as soon as it goes on.
    fn record_any_in_background(self: &Arc<Self>) {
        if self.recording_any.swap(true, Ordering::Relaxed) {
            return;
        }
        let inner = self.clone();
        tokio::spawn(async move {
            while !inner.record(RedisKey::AnyRecentWrite).await {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            inner.recording_any.store(false, Ordering::Relaxed);
        });
    }

    async fn may_have_written(&self, tenant: TenantId) -> bool {
        if !self.breaker.allows(Instant::now()) {
            return true;
        }
        let keys = [RedisKey::RecentWrite(tenant), RedisKey::AnyRecentWrite, RedisKey::RecentWriteServer];
        let keys = keys.map(|key| key.name(self.cluster)).to_vec();
        let script = self.has_written.evalsha_with_reload::<i64, _, _>(&self.client, keys, vec![WRITE_TTL_MS]);
        self.within(LOOKUP_TIMEOUT, script).await != Some(0)
    }

    /// Runs a command; returns its answer if there is one in time. The breaker counts the outcome.
    async fn within<T>(
        &self,
        timeout: Duration,
        command: impl Future<Output = Result<T, fred::error::Error>>,
    ) -> Option<T> {
        match tokio::time::timeout(timeout, command).await {
            Ok(Ok(answer)) => {
                self.breaker.succeeded();
                Some(answer)
            }
            failed => {
                self.breaker.failed(Instant::now());
                let error = failed.map(Result::err);
                tracing::debug!(?error, "redis does not answer; reading from primary until it does");
                None
            }
        }
    }
}
