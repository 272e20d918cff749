//! The Redis commands: each step of the protocol is atomic on one key.
//!
//! None waits behind another: verifications have a client of each thread, revocations and questions for news have one
//! each. The time-outs of these two are their clients' own: fred ignores those of single scripts.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fred::{
    bytes::Bytes,
    clients::Client,
    interfaces::{HashesInterface, KeysInterface},
    types::{Value, scripts::Script},
};

use super::{
    CachedIdentity, KeyHash,
    entry::{CasToken, LEASE_MS, TOMBSTONE_MS},
};
use crate::{
    config::redis::RedisConfig,
    core::{
        breaker::Breaker,
        id::ClusterId,
        redis::{self, PerThread, RedisError, RedisKey},
    },
};

const VERIFY: Duration = Duration::from_millis(50);
const REVOKE: Duration = Duration::from_millis(250);
const NEWS: Duration = Duration::from_millis(500);
/// Entries of news at a time.
pub const BATCH: usize = 1000;

const GET_OR_LEASE: &str = "
local there = redis.call('GET', KEYS[1])
if there then return there end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false";

const SWAP: &str = "
local there = redis.call('GET', KEYS[1])
if there and string.sub(there, 1, 17) == ARGV[1] then
  if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
  return 1
end
return 0";

// One key's value is replaced (a tombstone) or removed, which breaks a lease as well; the log tells the processes.
const REVOKE_SCRIPT: &str = "
if ARGV[1] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return redis.call('XADD', KEYS[2], 'MAXLEN', '~', 100000, '*', 'h', ARGV[3], 'v', ARGV[4])";

// InvalidationBatch since the last question, and in the same reply the proof that it was asked; so their order needs no argument.
const NEWS_SCRIPT: &str = "
local t = redis.call('TIME')
local now = string.format('%d', t[1] * 1000 + math.floor(t[2] / 1000))
local epoch = redis.call('GET', KEYS[1])
if not epoch then
  epoch = ARGV[1] .. '@' .. now
  redis.call('SET', KEYS[1], epoch)
end
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
newest = newest[1] and newest[1][1] or '0-0'
local oldest, entries = '0-0', {}
if ARGV[2] ~= '' then
  local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)
  oldest = first[1] and first[1][1] or '0-0'
  for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '(' .. ARGV[2], '+', 'COUNT', ARGV[4])) do
    entries[#entries + 1] = entry[1]
    entries[#entries + 1] = entry[2][2]
  end
  if ARGV[3] ~= '' then
    redis.call('HSET', KEYS[3], ARGV[3], ARGV[2] .. ' ' .. now)
  end
end
return {epoch, oldest, newest, unpack(entries)}";

// Only a Redis that has settled knows all who listen: whoever may still believe what it keeps has asked for news since
// Redis last forgot everything. Judged here, not when the revocation was told: it may have forgotten since.
const SEEN_SCRIPT: &str = "
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local born = string.match(redis.call('GET', KEYS[2]) or '', '@(%d+)$')
if not born or now - born < tonumber(ARGV[3]) then return -1 end
local behind = 0
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local a, b, at = string.match(all[i + 1], '^(%d+)-(%d+) (%d+)$')
  if not at or now - at > 3600000 then
    redis.call('HDEL', KEYS[1], all[i])
  elseif now - at < tonumber(ARGV[3]) then
    a, b = tonumber(a), tonumber(b)
    local wa, wb = tonumber(ARGV[1]), tonumber(ARGV[2])
    if a < wa or (a == wa and b < wb) then behind = behind + 1 end
  end
end
return behind";

/// A position in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogId(pub u64, pub u64);

impl std::fmt::Display for LogId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

impl std::str::FromStr for LogId {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let (ms, seq) = text.split_once('-').ok_or(())?;
        Ok(Self(ms.parse().map_err(|_| ())?, seq.parse().map_err(|_| ())?))
    }
}

/// The answer to a question for news.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InvalidationBatch {
    pub epoch: String,
    pub oldest: LogId,
    pub newest: LogId,
    pub entries: Vec<(LogId, KeyHash)>,
}

/// Redis did not do it, as far as is known.
#[derive(Debug, thiserror::Error)]
#[error("redis: {0}")]
pub struct TierError(pub String);

impl From<fred::error::Error> for TierError {
    fn from(error: fred::error::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<RedisError> for TierError {
    fn from(error: RedisError) -> Self {
        Self(error.to_string())
    }
}

type Result<T> = std::result::Result<T, TierError>;

#[derive(Clone)]
pub struct RedisTier(Arc<Inner>);

struct Inner {
    verifying: PerThread,
    revoking: Client,
    asking: Client,
    cluster: ClusterId,
    breaker: Breaker,
    get_or_lease: Script,
    swap: Script,
    revoke: Script,
    news: Script,
    seen: Script,
}

impl RedisTier {
    /// # Errors
    /// When a client cannot be built; not when Redis is away.
    pub fn new(config: &RedisConfig, cluster: ClusterId) -> std::result::Result<Self, RedisError> {
        Ok(Self(Arc::new(Inner {
            verifying: PerThread::new(config, VERIFY),
            revoking: redis::client(config, REVOKE)?,
            asking: redis::client(config, NEWS)?,
            cluster,
            breaker: Breaker::default(),
            get_or_lease: Script::from_lua(GET_OR_LEASE),
            swap: Script::from_lua(SWAP),
            revoke: Script::from_lua(REVOKE_SCRIPT),
            news: Script::from_lua(NEWS_SCRIPT),
            seen: Script::from_lua(SEEN_SCRIPT),
        })))
    }

    /// The key's name in Redis; its value's MAC covers it.
    pub fn redis_key(&self, name: &KeyHash) -> String {
        RedisKey::ApiKey(name).name(self.0.cluster)
    }

    fn special(&self, key: RedisKey<'_>) -> String {
        key.name(self.0.cluster)
    }

    /// Whether verifications should try Redis now.
    pub fn allows(&self) -> bool {
        self.0.breaker.allows(Instant::now())
    }

    pub fn is_broken(&self) -> bool {
        self.0.breaker.is_open()
    }

    pub async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        self.authorized(|redis| redis.get(key)).await
    }

    /// What is there; if nothing, the lease is now.
    pub async fn get_or_lease(&self, key: &str, lease: &CasToken) -> Result<Option<Bytes>> {
        let arguments: Vec<Value> = vec![bytes(&lease.0), LEASE_MS.into()];
        self.authorized(|redis| self.0.get_or_lease.evalsha_with_reload(redis, key, arguments)).await
    }

    /// Puts `value` in place of what begins with `expected`; an empty one: removes that.
    pub async fn swap(&self, key: &str, expected: &CasToken, value: &[u8], ms: i64) -> Result<bool> {
        let arguments: Vec<Value> = vec![bytes(&expected.0), bytes(value), ms.into()];
        let swapped: i64 = self.authorized(|redis| self.0.swap.evalsha_with_reload(redis, key, arguments)).await?;
        Ok(swapped == 1)
    }

    /// Replaces a key's value by a tombstone (or by nothing) and tells the log. Answers the entry's id.
    pub async fn revoke(&self, name: &KeyHash, tombstone: Option<&[u8]>, ver: i64) -> Result<LogId> {
        let keys = vec![self.redis_key(name), self.special(RedisKey::InvalidationLog)];
        let arguments: Vec<Value> = vec![
            bytes(tombstone.unwrap_or_default()),
            TOMBSTONE_MS.into(),
            data_encoding::HEXLOWER.encode(name).into(),
            ver.into(),
        ];
        let id: String = self.0.revoke.evalsha_with_reload(&self.0.revoking, keys, arguments).await?;
        id.parse().map_err(|()| TierError(format!("not a log id: {id}")))
    }

    /// How many processes that asked for news within `within` have not seen the entry yet; `None`: not known, for Redis
    /// has been empty within that time.
    pub async fn behind(&self, entry: LogId, within: Duration) -> Result<Option<i64>> {
        let within = i64::try_from(within.as_millis()).unwrap_or(i64::MAX);
        let arguments: Vec<Value> = vec![entry.0.to_string().into(), entry.1.to_string().into(), within.into()];
        let keys = vec![self.special(RedisKey::InvalidationReaders), self.special(RedisKey::InvalidationEpoch)];
        let behind: i64 = self.0.seen.evalsha_with_reload(&self.0.revoking, keys, arguments).await?;
        Ok((behind >= 0).then_some(behind))
    }

    /// InvalidationBatch after `last` (`None`: from now on). `instance`: who says to have seen all up to `last`.
    pub async fn news(
        &self,
        last: Option<LogId>,
        instance: Option<&str>,
        new_epoch: &str,
    ) -> Result<InvalidationBatch> {
        let keys = vec![
            self.special(RedisKey::InvalidationEpoch),
            self.special(RedisKey::InvalidationLog),
            self.special(RedisKey::InvalidationReaders),
        ];
        let last = last.map(|last| last.to_string()).unwrap_or_default();
        let batch = i64::try_from(BATCH).unwrap_or(i64::MAX);
        let arguments: Vec<Value> =
            vec![new_epoch.into(), last.into(), instance.unwrap_or_default().into(), batch.into()];
        let asked = self.0.news.evalsha_with_reload(&self.0.asking, keys, arguments);
        // A server that hangs would hold it longer than the fence.
        let asked = tokio::time::timeout(NEWS, asked).await.map_err(|_| TierError("no news in time".into()))?;
        parse_news(asked?)
    }

    /// Says that this process is gone.
    pub async fn forget(&self, instance: &str) -> Result<()> {
        let _: i64 = self.0.revoking.hdel(self.special(RedisKey::InvalidationReaders), instance).await?;
        Ok(())
    }

    /// Asks, and the breaker hears how it went.
    async fn authorized<'a, T, F>(&'a self, question: impl FnOnce(&'a Client) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, fred::error::Error>>,
    {
        let answer = self.0.verifying.ask(question).await;
        match &answer {
            Ok(_) => self.0.breaker.succeeded(),
            Err(_) => self.0.breaker.failed(Instant::now()),
        }
        Ok(answer?)
    }
}

impl CachedIdentity {
    /// When a thread begins to serve: its first question need not wait for a connection.
    ///
    /// # Errors
    /// When a client cannot be built.
    pub fn open_thread(&self) -> std::result::Result<(), RedisError> {
        self.inner().tier.0.verifying.open()
    }
}

fn bytes(value: &[u8]) -> Value {
    Value::Bytes(Bytes::copy_from_slice(value))
}

fn parse_news(mut parts: Vec<String>) -> Result<InvalidationBatch> {
    let wrong = || TierError("not news".into());
    if parts.len() < 3 {
        return Err(wrong());
    }
    let rest = parts.split_off(3);
    let id = |text: &str| text.parse::<LogId>().map_err(|()| wrong());
    let entries = rest.chunks(2).map(|pair| {
        let [at, name] = pair else { return Err(wrong()) };
        let name = data_encoding::HEXLOWER.decode(name.as_bytes()).map_err(|_| wrong())?;
        Ok((id(at)?, name.try_into().map_err(|_| wrong())?))
    });
    Ok(InvalidationBatch {
        oldest: id(&parts[1])?,
        newest: id(&parts[2])?,
        entries: entries.collect::<Result<_>>()?,
        epoch: parts.swap_remove(0),
    })
}
