//! The Lua scripts on a real Redis behave as the models in `core/identity/cache/model` assume, step by step.

use std::{collections::HashMap, time::Duration};

use app::{
    config::redis::RedisConfig,
    core::{
        id::ClusterId,
        identity::cache::{
            ShortHash,
            entry::{CasToken, LEASE_TTL_MS, TOMBSTONE_TTL_MS},
            redis_tier::{INVALIDATIONS_MAX, InvalidationBatch, LogId, RedisTier},
        },
    },
};

use crate::support::{poll_until, redis_server::RedisServer};

/// Longer than any fence, as the revoking process waits.
const SETTLED: Duration = Duration::from_millis(1010);
const TOMBSTONE: &[u8] = b"T0123456789abcdef version mac";

struct Redis {
    server: RedisServer,
    tier: RedisTier,
    cluster: ClusterId,
}

impl Redis {
    async fn start() -> Self {
        let (server, cluster) = (RedisServer::start(), ClusterId::new());
        let tier = RedisTier::new(&RedisConfig::parse(&server.url()).unwrap(), cluster).unwrap();
        // The first command has to wait for its connection, and for 50 ms at most.
        poll_until("a connection", Duration::from_secs(60), async || tier.get("none").await.ok()).await;
        Self { server, tier, cluster }
    }

    /// Starts a Redis whose epoch is old enough that it counts as settled.
    async fn settled() -> Self {
        let redis = Self::start().await;
        redis.server.cli(&["SET", &redis.named("epoch"), "old@1000"]);
        redis
    }

    fn named(&self, what: &str) -> String {
        format!("app:{}:ak:{what}", self.cluster)
    }

    async fn get(&self, name: &ShortHash) -> Option<Vec<u8>> {
        self.tier.get(&self.tier.redis_key(name)).await.unwrap().map(|value| value.to_vec())
    }

    fn ttl(&self, name: &ShortHash) -> i64 {
        self.server.cli(&["PTTL", &self.tier.redis_key(name)]).trim().parse().unwrap()
    }

    async fn invalidations(&self, last: Option<LogId>, instance: Option<&str>) -> InvalidationBatch {
        self.tier.poll_invalidations(last, instance, "nonce").await.unwrap()
    }

    async fn lagging(&self, entry: LogId, within: Duration) -> Option<i64> {
        self.tier.count_lagging(entry, within).await.unwrap()
    }

    fn registered(&self, instance: &str) -> String {
        self.server.cli(&["HGET", &self.named("acked"), instance]).trim().to_owned()
    }

    /// Reads Redis' clock.
    fn now_ms(&self) -> u64 {
        let time = self.server.cli(&["TIME"]);
        let mut parts = time.split_whitespace().map(|part| part.parse::<u64>().unwrap());
        parts.next().unwrap() * 1000 + parts.next().unwrap() / 1000
    }

    /// Appends entries to the log, all at once.
    fn append(&self, count: usize, name: &ShortHash) {
        let script = "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'h', ARGV[2], 'v', 1) end";
        let name = name.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        self.server.cli(&["EVAL", script, "1", &self.named("log"), &count.to_string(), &name]);
    }
}

/// A random generator that produces the same numbers each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u8 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u8::try_from(self.0 % limit).unwrap()
    }

    fn name(&mut self) -> ShortHash {
        [self.below(2); 16]
    }

    /// Returns one of a few combinations of kind and nonce.
    fn prefix(&mut self) -> CasToken {
        let kind = b"LV"[usize::from(self.below(2))];
        CasToken([&[kind][..], &[self.below(3); 16]].concat())
    }

    /// Returns a prefix and more, or, as an intruder would write, something shorter.
    fn value(&mut self) -> Vec<u8> {
        let mut value = [&self.prefix().0[..], &vec![b'.'; usize::from(self.below(40))]].concat();
        if self.below(5) == 0 {
            value.truncate(usize::from(self.below(18)));
        }
        value
    }
}

/// The state of entries and log as the models have it.
#[derive(Default)]
struct Model {
    cells: HashMap<ShortHash, Vec<u8>>,
    log: Vec<(LogId, ShortHash)>,
}

impl Model {
    fn swap(&mut self, name: ShortHash, expected: &CasToken, value: Vec<u8>) -> bool {
        let same = self.cells.get(&name).is_some_and(|there| there[..there.len().min(17)] == expected.0);
        if same && value.is_empty() {
            self.cells.remove(&name);
        } else if same {
            self.cells.insert(name, value);
        }
        same
    }
}

#[tokio::test]
async fn random_command_sequences_match_the_models() {
    let (redis, mut model, mut random) = (Redis::settled().await, Model::default(), Random(0x9E37_79B9_7F4A_7C15));

    for step in 0..3000 {
        let name = random.name();
        let key = redis.tier.redis_key(&name);
        let before = model.cells.get(&name).cloned();
        match random.below(8) {
            0 => assert_eq!(redis.get(&name).await, before, "step {step}"),
            1 | 2 => {
                let lease = random.prefix();
                let there = redis.tier.get_or_lease(&key, &lease).await.unwrap().map(|value| value.to_vec());
                assert_eq!(there, before, "step {step}: what was there");
                model.cells.entry(name).or_insert(lease.0);
            }
            3..=5 => {
                // In half of the cases the value that is there.
                let there = before.map(|value| CasToken(value[..value.len().min(17)].to_vec()));
                let expected = there.filter(|_| random.below(2) == 0).unwrap_or_else(|| random.prefix());
                let value = random.value();
                let swapped = redis.tier.swap(&key, &expected, &value, 60_000).await.unwrap();
                assert_eq!(swapped, model.swap(name, &expected, value), "step {step}: {expected:?}");
            }
            6 => {
                let tombstone = (random.below(2) == 0).then_some(TOMBSTONE);
                let id = redis.tier.invalidate(&name, tombstone, 1).await.unwrap();
                match tombstone {
                    Some(tombstone) => model.cells.insert(name, tombstone.to_vec()),
                    None => model.cells.remove(&name),
                };
                assert!(model.log.last().is_none_or(|(last, _)| *last < id), "step {step}: ids grow");
                model.log.push((id, name));
            }
            _ => {
                let at = usize::from(random.below(4)).min(model.log.len());
                let last = model.log.len().checked_sub(at + 1).map_or(LogId::default(), |i| model.log[i].0);
                let batch = redis.invalidations(Some(last), None).await;
                let after: Vec<_> = model.log.iter().filter(|(id, _)| *id > last).copied().collect();
                assert_eq!(
                    batch.entries,
                    after[..after.len().min(INVALIDATIONS_MAX)],
                    "step {step}: entries after {last}"
                );
                let id = |entry: Option<&(LogId, ShortHash)>| entry.map_or(LogId::default(), |(id, _)| *id);
                assert_eq!((batch.oldest, batch.newest), (id(model.log.first()), id(model.log.last())), "step {step}");
            }
        }
        let cells = [redis.get(&[0; 16]).await, redis.get(&[1; 16]).await];
        assert_eq!(cells, [[0; 16], [1; 16]].map(|name| model.cells.get(&name).cloned()), "step {step}");
    }

    assert!(model.log.len() > 100, "too few revocations");
}

#[tokio::test]
async fn entries_have_the_right_time_to_live() {
    let redis = Redis::settled().await;
    let (name, lease) = ([0; 16], CasToken([&b"L"[..], &[1; 16]].concat()));
    let key = redis.tier.redis_key(&name);
    redis.tier.get_or_lease(&key, &lease).await.unwrap();
    assert!((LEASE_TTL_MS - 1000..=LEASE_TTL_MS).contains(&redis.ttl(&name)), "a lease");
    assert!(redis.tier.swap(&key, &lease, b"", 0).await.unwrap());
    assert_eq!(redis.ttl(&name), -2, "a lease that was released");
    assert!(!redis.tier.swap(&key, &lease, b"", 0).await.unwrap(), "released a second time");

    redis.tier.get_or_lease(&key, &lease).await.unwrap();
    assert!(redis.tier.swap(&key, &lease, b"V", 90_000).await.unwrap());
    assert!((89_000..=90_000).contains(&redis.ttl(&name)), "a value");

    redis.tier.invalidate(&name, Some(TOMBSTONE), 1).await.unwrap();
    assert!((TOMBSTONE_TTL_MS - 1000..=TOMBSTONE_TTL_MS).contains(&redis.ttl(&name)), "a tombstone");
}

#[tokio::test]
async fn first_poll_reads_from_now_and_later_polls_register() {
    let redis = Redis::start().await;
    let old = redis.tier.invalidate(&[7; 16], None, 1).await.unwrap();
    let first = redis.invalidations(None, Some("a")).await;
    assert_eq!((first.newest, first.entries.len()), (old, 0));
    assert_eq!(redis.registered("a"), "", "a process that has applied no entry yet delays no revocation");

    let new = redis.tier.invalidate(&[8; 16], Some(TOMBSTONE), 2).await.unwrap();
    let second = redis.invalidations(Some(old), Some("a")).await;
    assert_eq!((second.oldest, second.newest, &second.entries[..]), (old, new, &[(new, [8; 16])][..]));
    assert_eq!(second.epoch, first.epoch, "the epoch stays");

    let (last, at) = redis.registered("a").split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    assert_eq!(last, old.to_string(), "the entry that was applied, not the one being sent");
    assert!(redis.now_ms().abs_diff(at.parse().unwrap()) < 1000);

    redis.invalidations(Some(new), None).await;
    assert_eq!(
        redis.server.cli(&["HLEN", &redis.named("acked")]).trim(),
        "1",
        "a process without a cache does not register"
    );

    redis.server.cli(&["FLUSHALL"]);
    let flushed = redis.tier.poll_invalidations(Some(new), Some("a"), "another").await.unwrap();
    assert!(flushed.epoch.starts_with("another@") && flushed.newest == LogId::default());
}

#[tokio::test]
async fn gap_and_full_batch_are_distinguishable() {
    let redis = Redis::settled().await;
    redis.append(1, &[1; 16]);
    let last = redis.invalidations(None, None).await.newest;
    redis.append(INVALIDATIONS_MAX + 5, &[2; 16]);
    let batch = redis.invalidations(Some(last), None).await;
    assert_eq!((batch.entries.len(), batch.oldest), (INVALIDATIONS_MAX, last), "one full batch without a gap");

    let rest = redis.invalidations(batch.entries.last().map(|(id, _)| *id), None).await;
    assert_eq!((rest.entries.len(), rest.entries[4].0), (5, batch.newest));

    redis.server.cli(&["XTRIM", &redis.named("log"), "MAXLEN", "=", "3"]);
    let gap = redis.invalidations(Some(last), None).await;
    assert!(gap.oldest > last && gap.entries.len() == 3);

    redis.server.cli(&["DEL", &redis.named("log")]);
    let gone = redis.invalidations(Some(last), None).await;
    assert_eq!((gone.oldest, gone.newest, gone.entries.len()), (LogId::default(), LogId::default(), 0));

    // Revocations trim the log a piece at a time, and never to fewer entries than one batch.
    redis.append(120_000, &[3; 16]);
    redis.tier.invalidate(&[4; 16], None, 1).await.unwrap();
    let length: usize = redis.server.cli(&["XLEN", &redis.named("log")]).trim().parse().unwrap();
    assert!((100_000..120_000).contains(&length) && length > INVALIDATIONS_MAX, "{length}");
}

#[tokio::test]
async fn lagging_processes_are_counted_unless_silent_or_gone() {
    let redis = Redis::settled().await;
    let entry = redis.tier.invalidate(&[1; 16], None, 1).await.unwrap();
    assert_eq!(redis.lagging(entry, SETTLED).await, Some(0), "no process is registered");

    redis.invalidations(Some(LogId::default()), Some("a")).await;
    redis.invalidations(Some(LogId::default()), Some("b")).await;
    assert_eq!(redis.lagging(entry, SETTLED).await, Some(2), "the entry was sent to both, and neither has applied it");

    redis.invalidations(Some(entry), Some("a")).await;
    assert_eq!(redis.lagging(entry, SETTLED).await, Some(1));

    let older = LogId(entry.0, entry.1.wrapping_sub(1)).min(LogId(entry.0 - 1, u64::from(u32::MAX)));
    redis.invalidations(Some(older), Some("a")).await;
    assert_eq!(redis.lagging(entry, SETTLED).await, Some(2), "an entry just below is lagging");

    redis.invalidations(Some(LogId(entry.0, entry.1 + 1)), Some("a")).await;
    redis.tier.unregister("b").await.unwrap();
    assert_eq!(redis.lagging(entry, SETTLED).await, Some(0), "an entry just above is not lagging; b has unregistered");

    // The time before the poll: the poll itself may take any time on a busy machine.
    let polled_at = redis.now_ms();
    redis.invalidations(Some(LogId::default()), Some("c")).await;
    while redis.lagging(entry, SETTLED).await != Some(0) {
        assert!(redis.now_ms() < polled_at + 30_000, "c does not poll");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    assert!(redis.now_ms() >= polled_at + 1000, "before its fence has expired");

    redis.server.cli(&["HSET", &redis.named("acked"), "long gone", "5-0 1", "garbled", "?"]);
    assert_eq!(redis.lagging(entry, SETTLED).await, Some(0));
    assert_eq!(redis.registered("long gone") + &redis.registered("garbled"), "", "removed");
}

#[tokio::test]
async fn redis_that_lost_its_epoch_settles_after_one_fence() {
    let redis = Redis::start().await;
    let entry = redis.tier.invalidate(&[1; 16], None, 1).await.unwrap();
    assert_eq!(redis.lagging(entry, SETTLED).await, None, "no process has polled yet");

    for round in 0..2 {
        let epoch = redis.invalidations(Some(entry), Some("a")).await.epoch;
        let born: u64 = epoch.split_once('@').unwrap().1.parse().unwrap();
        loop {
            let before = redis.now_ms();
            let lagging = redis.lagging(entry, SETTLED).await;
            let after = redis.now_ms();
            match lagging {
                None => assert!(before < born + 1010, "round {round}: {} ms old, not settled", before - born),
                Some(lagging) => {
                    assert!(after >= born + 1010, "round {round}: {} ms old, settled", after - born);
                    assert_eq!(lagging, 0, "a does not poll any more or has applied it");
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        redis.server.cli(&["FLUSHALL"]);
        assert_eq!(
            redis.lagging(entry, SETTLED).await,
            None,
            "also when Redis is emptied between the revocation and the count"
        );
    }
    redis.server.cli(&["SET", &redis.named("epoch"), "garbled"]);

    assert_eq!(redis.lagging(entry, SETTLED).await, None);
}
