//! The Redis commands of the cache. Each step of the protocol is atomic on one key: a command or a Lua script.
//!
//! | key | type | content |
//! |---|---|---|
//! | `ak1:<short hash>` | string | the entry of a key (`entry`) |
//! | `ak:log` | stream | the invalidation log: short hash and version of each change |
//! | `ak:epoch` | string | a nonce and its creation time, set when missing: it changes when Redis has lost its data |
//! | `ak:acked` | hash | process → the last log entry that it has applied, and when it polled |
//!
//! Verifications have one client per thread; deliveries and polls have one client each, so that none waits behind
//! another. The time-outs of the latter two are set on their clients: fred ignores those of single scripts
//! (fred.rs#353).

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
    entry::{CasToken, LEASE_TTL_MS, TOMBSTONE_TTL_MS},
    key::ShortHash,
};
use crate::{
    config::redis::RedisConfig,
    core::{
        breaker::Breaker,
        id::ClusterId,
        redis::{self, PerThread, RedisError, RedisKey},
    },
};

const VERIFY_TIMEOUT: Duration = Duration::from_millis(50);
const DELIVER_TIMEOUT: Duration = Duration::from_millis(250);
const POLL_TIMEOUT: Duration = Duration::from_millis(500);
/// Entries of the log in one reply, at most.
pub const INVALIDATIONS_MAX: usize = 1000;

const GET_OR_LEASE: &str = include_str!("lua/get_or_lease.lua");
const SWAP: &str = include_str!("lua/swap.lua");
const INVALIDATE: &str = include_str!("lua/invalidate.lua");
const POLL: &str = include_str!("lua/poll.lua");
const COUNT_LAGGING: &str = include_str!("lua/count_lagging.lua");

/// The id of an entry of the invalidation log: milliseconds and sequence number.
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

/// The reply to a poll of the invalidation log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InvalidationBatch {
    /// The value of `ak:epoch`. It differs from that of the last batch when Redis has lost its data since.
    pub epoch: String,
    /// The oldest entry of the log; `0-0` when the log is empty or was not read.
    pub oldest: LogId,
    /// The newest entry of the log; `0-0` when it is empty.
    pub newest: LogId,
    /// The entries after the last applied one, oldest first.
    pub entries: Vec<(LogId, ShortHash)>,
}

/// A command that Redis did not execute, as far as is known.
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

/// The cache in Redis. Cheap to clone.
#[derive(Clone)]
pub struct RedisTier(Arc<Inner>);

struct Inner {
    verifying: PerThread,
    delivering: Client,
    polling: Client,
    cluster: ClusterId,
    breaker: Breaker,
    get_or_lease: Script,
    swap: Script,
    invalidate: Script,
    poll: Script,
    count_lagging: Script,
}

impl RedisTier {
    /// Makes the clients, which connect in the background.
    ///
    /// # Errors
    /// When a client cannot be built; not when Redis does not answer.
    pub fn new(config: &RedisConfig, cluster: ClusterId) -> std::result::Result<Self, RedisError> {
        Ok(Self(Arc::new(Inner {
            verifying: PerThread::new(config, VERIFY_TIMEOUT),
            delivering: redis::client(config, DELIVER_TIMEOUT)?,
            polling: redis::client(config, POLL_TIMEOUT)?,
            cluster,
            breaker: Breaker::default(),
            get_or_lease: Script::from_lua(GET_OR_LEASE),
            swap: Script::from_lua(SWAP),
            invalidate: Script::from_lua(INVALIDATE),
            poll: Script::from_lua(POLL),
            count_lagging: Script::from_lua(COUNT_LAGGING),
        })))
    }

    /// Connects this thread's client, so that its first verification does not wait for a connection.
    ///
    /// # Errors
    /// When the client cannot be built.
    pub fn open_thread(&self) -> std::result::Result<(), RedisError> {
        self.0.verifying.open()
    }

    /// Returns the Redis key of a key's entry. The entry's MAC covers it.
    pub fn redis_key(&self, name: &ShortHash) -> String {
        RedisKey::ApiKey(name).name(self.0.cluster)
    }

    fn shared_key(&self, key: RedisKey<'_>) -> String {
        key.name(self.0.cluster)
    }

    /// Returns whether a verification should try Redis now.
    pub fn allows(&self) -> bool {
        self.0.breaker.allows(Instant::now())
    }

    /// Returns whether the circuit breaker is open.
    pub fn is_broken(&self) -> bool {
        self.0.breaker.is_open()
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// When Redis fails or does not answer within 50 ms.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        self.guarded(|redis| redis.get(key)).await
    }

    /// Reads an entry; if there is none, writes the lease.
    ///
    /// # Errors
    /// As for `get`; then the lease may have been written.
    pub async fn get_or_lease(&self, key: &str, lease: &CasToken) -> Result<Option<Bytes>> {
        let arguments: Vec<Value> = vec![bytes(&lease.0), LEASE_TTL_MS.into()];
        self.guarded(|redis| self.0.get_or_lease.evalsha_with_reload(redis, key, arguments)).await
    }

    /// Replaces the entry that has the token `expected` by `value`, or removes it when `value` is empty. Returns
    /// whether the entry had that token.
    ///
    /// # Errors
    /// As for `get`; then the entry may have been replaced.
    pub async fn swap(&self, key: &str, expected: &CasToken, value: &[u8], ttl_ms: i64) -> Result<bool> {
        let arguments: Vec<Value> = vec![bytes(&expected.0), bytes(value), ttl_ms.into()];
        let swapped: i64 = self.guarded(|redis| self.0.swap.evalsha_with_reload(redis, key, arguments)).await?;
        Ok(swapped == 1)
    }

    /// Replaces a key's entry by a tombstone, or removes it, and appends to the log. Returns the id of the log entry.
    ///
    /// # Errors
    /// When Redis fails or does not answer in time; then it may have been done.
    pub async fn invalidate(&self, name: &ShortHash, tombstone: Option<&[u8]>, ver: i64) -> Result<LogId> {
        let keys = vec![self.redis_key(name), self.shared_key(RedisKey::InvalidationLog)];
        let arguments: Vec<Value> = vec![
            bytes(tombstone.unwrap_or_default()),
            TOMBSTONE_TTL_MS.into(),
            data_encoding::HEXLOWER.encode(name).into(),
            ver.into(),
        ];
        let id: String = self.0.invalidate.evalsha_with_reload(&self.0.delivering, keys, arguments).await?;
        id.parse().map_err(|()| TierError(format!("not a log id: {id}")))
    }

    /// Returns how many processes that polled within `within` have not applied the entry yet; `None` when that is
    /// unknown, because Redis lost its data within that time.
    ///
    /// # Errors
    /// When Redis fails or does not answer in time.
    pub async fn count_lagging(&self, entry: LogId, within: Duration) -> Result<Option<i64>> {
        let within = i64::try_from(within.as_millis()).unwrap_or(i64::MAX);
        let arguments: Vec<Value> = vec![entry.0.to_string().into(), entry.1.to_string().into(), within.into()];
        let keys = vec![self.shared_key(RedisKey::InvalidationsAcked), self.shared_key(RedisKey::InvalidationEpoch)];
        let lagging: i64 = self.0.count_lagging.evalsha_with_reload(&self.0.delivering, keys, arguments).await?;
        Ok((lagging >= 0).then_some(lagging))
    }

    /// Reads the log after `last` (`None`: only its end), and registers that `process` has applied all up to `last`.
    ///
    /// # Errors
    /// When Redis fails or does not answer within 500 ms; then the process may have been registered.
    pub async fn poll_invalidations(
        &self,
        last: Option<LogId>,
        process: Option<&str>,
        new_epoch: &str,
    ) -> Result<InvalidationBatch> {
        let keys = vec![
            self.shared_key(RedisKey::InvalidationEpoch),
            self.shared_key(RedisKey::InvalidationLog),
            self.shared_key(RedisKey::InvalidationsAcked),
        ];
        let last = last.map(|last| last.to_string()).unwrap_or_default();
        let most = i64::try_from(INVALIDATIONS_MAX).unwrap_or(i64::MAX);
        let arguments: Vec<Value> =
            vec![new_epoch.into(), last.into(), process.unwrap_or_default().into(), most.into()];
        let poll = self.0.poll.evalsha_with_reload(&self.0.polling, keys, arguments);
        // The client's time-out does not cover a server that hangs; the fence must not outlast the poll by much.
        let reply =
            tokio::time::timeout(POLL_TIMEOUT, poll).await.map_err(|_| TierError("no answer in time".into()))?;
        parse_batch(reply?)
    }

    /// Removes a process that ends, so that no revocation waits for it.
    ///
    /// # Errors
    /// When Redis fails; then revocations wait for up to a second.
    pub async fn unregister(&self, process: &str) -> Result<()> {
        let _: i64 = self.0.delivering.hdel(self.shared_key(RedisKey::InvalidationsAcked), process).await?;
        Ok(())
    }

    /// Runs a command of a verification, and counts its result in the breaker.
    async fn guarded<'a, T, F>(&'a self, command: impl FnOnce(&'a Client) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, fred::error::Error>>,
    {
        let answer = self.0.verifying.run(command).await;
        match &answer {
            Ok(_) => self.0.breaker.succeeded(),
            Err(_) => self.0.breaker.failed(Instant::now()),
        }
        Ok(answer?)
    }
}

fn bytes(value: &[u8]) -> Value {
    Value::Bytes(Bytes::copy_from_slice(value))
}

/// Reads the reply of `poll.lua`: epoch, oldest, newest, then pairs of id and hash.
fn parse_batch(mut parts: Vec<String>) -> Result<InvalidationBatch> {
    let unreadable = || TierError("the reply to a poll of the invalidation log cannot be read".into());
    if parts.len() < 3 {
        return Err(unreadable());
    }
    let rest = parts.split_off(3);
    let id = |text: &str| text.parse::<LogId>().map_err(|()| unreadable());
    let entries = rest.chunks(2).map(|pair| {
        let [entry, name] = pair else { return Err(unreadable()) };
        let name = data_encoding::HEXLOWER.decode(name.as_bytes()).map_err(|_| unreadable())?;
        Ok((id(entry)?, name.try_into().map_err(|_| unreadable())?))
    });
    Ok(InvalidationBatch {
        oldest: id(&parts[1])?,
        newest: id(&parts[2])?,
        entries: entries.collect::<Result<_>>()?,
        epoch: parts.swap_remove(0),
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn batch_is_read_as_the_script_wrote_it(
            epoch in any::<String>(),
            bounds in any::<[(u64, u64); 2]>(),
            entries in vec(any::<((u64, u64), [u8; 16])>(), 0..4),
        ) {
            let id = |(ms, seq)| LogId(ms, seq);
            let mut reply = vec![epoch.clone(), id(bounds[0]).to_string(), id(bounds[1]).to_string()];
            for (entry, hash) in &entries {
                reply.extend([id(*entry).to_string(), data_encoding::HEXLOWER.encode(hash)]);
            }

            let batch = parse_batch(reply).expect("well-formed");

            prop_assert_eq!((batch.epoch, batch.oldest, batch.newest), (epoch, id(bounds[0]), id(bounds[1])));
            let expected: Vec<_> = entries.into_iter().map(|(entry, hash)| (id(entry), hash)).collect();
            prop_assert_eq!(batch.entries, expected);
        }

        #[test]
        fn any_reply_is_read_whole_or_refused(
            reply in vec(prop_oneof!["[0-9]{1,21}-[0-9]{1,21}", "[0-9a-f]{32}", any::<String>()], 0..8),
        ) {
            if let Ok(batch) = parse_batch(reply.clone()) {
                prop_assert_eq!(reply.len(), 3 + 2 * batch.entries.len());
            }
        }
    }
}
