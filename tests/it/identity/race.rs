//! Revocations against readers: every request that begins after the response to a revocation must be refused.
//!
//! For each key sixteen readers, eight in each of two processes, send requests as fast as they can while a third
//! process changes the key; many keys at a time. Half of the keys are revoked the moment their first reader begins, so
//! that filling the caches meets the revocation, and one reader of each key evicts it from Redis before each of its
//! requests, so that the caches are filled all the time. That reader's process is further from Redis than the others:
//! what it writes arrives late, and in the naive cache after the revocation's DEL. The moment at which the change
//! begins is moved over that reader's request. All instants are of this process' one monotonic clock.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use app::{config::redis::RedisConfig, core::redis};
use fred::{clients::Client as Redis, interfaces::KeysInterface};
use futures_util::future;
use serde_json::Value;
use tokio::sync::Notify;

use super::{
    fault_proxy::{FaultProxy, Mode},
    key_factory::{KeyFactory, TestKey},
    metric,
    naive::{NaiveCache, NaiveReader},
    percentiles,
    raw_client::RawClient,
    serial, serve,
};
use crate::support::{App, Cluster, redis_server::RedisServer};

pub const READERS: usize = 16;
/// Requests of each reader after the change.
pub const AFTER: usize = 2;
const TASKS: usize = 40;
const REVOKES: usize = 3000;
const NAIVE_REVOKES: usize = 300;
/// Few, so that a revocation's DEL comes soon after its commit: the more time between them, the more late fills the DEL
/// removes.
const NAIVE_TASKS: usize = 8;
/// How long a byte travels between Redis and the process that is far from it.
const FAR: Duration = Duration::from_millis(5);

/// The outcome of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verification {
    Accepted,
    Refused,
    /// The process could not verify the key: 503.
    Unknown,
}

/// A reader that verifies keys.
pub trait Reader {
    async fn verify(&mut self, key: &TestKey) -> Verification;
    /// Removes the key from Redis, as memory pressure or an expiry might.
    async fn evict(&mut self, key: &TestKey);
}

#[derive(Debug, Default)]
pub struct Tally {
    pub before: usize,
    pub after: usize,
    pub accepted_after: usize,
    unknown: usize,
    pub changes: Vec<Duration>,
}

impl Tally {
    pub fn sum(all: impl IntoIterator<Item = Self>) -> Self {
        all.into_iter().fold(Self::default(), |sum, one| Self {
            before: sum.before + one.before,
            after: sum.after + one.after,
            accepted_after: sum.accepted_after + one.accepted_after,
            unknown: sum.unknown + one.unknown,
            changes: [sum.changes, one.changes].concat(),
        })
    }

    pub fn report(&self, what: &str, started: Instant) {
        let (p50, p99) = percentiles(self.changes.clone());
        eprintln!(
            "{what}: {} changes in {:.1?}, p50 {p50:.1?} p99 {p99:.1?}; accepted before: {}; began after: {}, of these \
             accepted: {}; answered 503: {}",
            self.changes.len(),
            started.elapsed(),
            self.before,
            self.after,
            self.accepted_after,
            self.unknown
        );
    }
}

/// When a key is changed during a race.
#[derive(Clone, Copy)]
pub struct Schedule {
    /// The number of readers that must have been accepted before the change; 0: it meets the first ones.
    pub warm: usize,
    /// The pause after that. It is no synchronisation: the last of those readers is the far one, so that without a
    /// pause the change would always meet it at the same point.
    pub pause: Duration,
    /// Requests of each reader after the change.
    pub after: usize,
}

impl Schedule {
    /// Returns the schedule of a key by its turn in its task: every other key is known to all readers before it
    /// changes, and the pauses go through the five ways to and from Redis that evicting, reading and filling are for a
    /// reader that is so `far`.
    pub fn for_turn(turn: usize, far: Duration) -> Self {
        if turn.is_multiple_of(2) {
            let step = u32::try_from(turn / 2 % 11).unwrap();
            Self { pause: far * step / 2, ..Self::at_once(READERS, AFTER) }
        } else {
            Self::at_once(0, AFTER)
        }
    }

    /// Returns a schedule without a pause.
    pub fn at_once(warm: usize, after: usize) -> Self {
        Self { warm, pause: Duration::ZERO, after }
    }
}

/// Lets the readers use `keys` while `change` happens; `change` returns how long it took.
pub async fn race<C: Reader>(
    readers: &mut [C],
    keys: &[&TestKey],
    schedule: Schedule,
    change: impl Future<Output = Duration>,
) -> Tally {
    let (changed, accepted, progress) = (OnceLock::<Instant>::new(), AtomicUsize::new(0), Notify::new());
    let (changed, accepted, progress) = (&changed, &accepted, &progress);
    let reading = readers.iter_mut().enumerate().map(|(n, reader)| async move {
        let (mut tally, mut turn) = (Tally::default(), n);
        while tally.after < schedule.after {
            let key = keys[turn % keys.len()];
            turn += READERS + 1;
            if n == 0 {
                reader.evict(key).await;
            }
            let began = Instant::now();
            let verification = reader.verify(key).await;
            let is_after = changed.get().is_some_and(|at| began > *at);
            match (verification, is_after) {
                (Verification::Unknown, _) => tally.unknown += 1,
                (_, true) => {
                    tally.after += 1;
                    tally.accepted_after += usize::from(verification == Verification::Accepted);
                }
                (Verification::Accepted, false) => {
                    if tally.before == 0 {
                        accepted.fetch_add(1, Ordering::SeqCst);
                    }
                    tally.before += 1;
                    progress.notify_one();
                }
                (Verification::Refused, false) => {}
            }
        }
        tally
    });
    let changing = async {
        while accepted.load(Ordering::SeqCst) < schedule.warm {
            progress.notified().await;
        }
        tokio::time::sleep(schedule.pause).await;
        let took = change.await;
        changed.set(Instant::now()).unwrap();
        took
    };
    let (tallies, took) = future::join(future::join_all(reading), changing).await;
    Tally { changes: vec![took], ..Tally::sum(tallies) }
}

/// A reader that uses a process of this program.
pub struct ApiReader {
    client: RawClient,
    redis: Redis,
    path: &'static str,
    /// The status that means accepted: that of `path` with the scope it needs.
    accepted: u16,
}

impl Reader for ApiReader {
    async fn verify(&mut self, key: &TestKey) -> Verification {
        match self.client.get(self.path, &key.text).await.status {
            401 | 403 => Verification::Refused,
            503 => Verification::Unknown,
            status if status == self.accepted => Verification::Accepted,
            status => panic!("{status}"),
        }
    }

    async fn evict(&mut self, key: &TestKey) {
        self.redis.del::<(), _>(&key.redis_key).await.unwrap();
    }
}

/// A Redis with a slow proxy in front of it. The cluster has the address of the server itself; what `far` starts has
/// that of the proxy.
struct RedisDistance {
    proxy: FaultProxy,
    near: RedisServer,
}

impl RedisDistance {
    async fn of(cluster: &mut Cluster, far: Duration) -> Self {
        let near = RedisServer::start();
        let proxy = FaultProxy::to(near.socket()).await;
        proxy.set(Mode::Delayed(far));
        cluster.redis_url = near.url();
        Self { proxy, near }
    }

    async fn far<T>(&self, cluster: &mut Cluster, start: impl AsyncFnOnce(&Cluster) -> T) -> T {
        cluster.redis_url = format!("redis://127.0.0.1:{}", self.proxy.port);
        let started = start(cluster).await;
        cluster.redis_url = self.near.url();
        started
    }
}

/// A cluster with two processes that verify keys, of which the first is far from Redis, and a third that revokes
/// them.
pub struct RevocationRace {
    pub verifiers: [(App, String); 2],
    revoker: (App, String),
    pub key_factory: KeyFactory,
    admin: String,
    redis: Redis,
    pub cluster: Cluster,
    _distance: RedisDistance,
}

impl RevocationRace {
    pub async fn open(l1: &str) -> Self {
        let mut cluster = Cluster::simulated().await;
        let distance = RedisDistance::of(&mut cluster, FAR).await;
        cluster.set("IDENTITY_L1", l1).set("RUST_LOG", "error,app::startup=info").set("DB_MAX_CONNS", 30);
        let key_factory = KeyFactory::of(&cluster).await;
        let admin = cluster.key("acme", "admin");
        let redis = redis::client(&RedisConfig::parse(&cluster.redis_url).unwrap(), Duration::from_secs(5)).unwrap();
        let far = distance.far(&mut cluster, async |cluster| serve(cluster)).await;
        let (verifiers, revoker) = ([far, serve(&cluster)], serve(&cluster));
        Self { cluster, key_factory, admin, verifiers, revoker, redis, _distance: distance }
    }

    pub async fn readers(&self, path: &'static str, accepted: u16) -> Vec<ApiReader> {
        let open = (0..READERS).map(|n| async move {
            let client = RawClient::connect(&self.verifiers[n % 2].1).await;
            ApiReader { client, redis: self.redis.clone(), path, accepted }
        });
        future::join_all(open).await
    }

    /// Sends the change to the third process, and asserts the status of the response.
    pub async fn send_change(&self, method: &str, path: String, body: Option<Value>, status: u16) -> Value {
        let mut client = RawClient::connect(&self.revoker.1).await;
        client.send(method, &path, &self.admin, body.as_ref()).await.expect(status).body()
    }

    /// Races each key, many at a time; `schedule` gets the turn of the key in its task.
    pub async fn race_each<'a, F: Future<Output = Duration>>(
        &'a self,
        keys: &'a [TestKey],
        tasks: usize,
        (path, accepted): (&'static str, u16),
        schedule: impl Fn(usize) -> Schedule,
        change: impl Fn(&'a TestKey) -> F,
    ) -> Tally {
        let (schedule, change) = (&schedule, &change);
        let tasks = (0..tasks).map(|task| async move {
            let mut readers = self.readers(path, accepted).await;
            let mut tallies = Vec::new();
            for (turn, key) in keys.iter().skip(task).step_by(tasks).enumerate() {
                tallies.push(race(&mut readers, &[key], schedule(turn), change(key)).await);
            }
            Tally::sum(tallies)
        });
        Tally::sum(future::join_all(tasks).await)
    }

    async fn revokes(&self, n: usize) -> Tally {
        let tenant = self.key_factory.create_tenant("revoked").await;
        let keys = self.key_factory.create_keys(n, tenant, &["keys:read"], None).await;
        let revoke = |key: &TestKey| timed(self.send_change("DELETE", format!("/keys/{}", key.id), None, 204));
        self.race_each(&keys, TASKS, ("/keys/self", 200), schedule_for_turn, revoke).await
    }
}

/// Returns the schedule of a key in `RevocationRace`.
pub fn schedule_for_turn(turn: usize) -> Schedule {
    Schedule::for_turn(turn, FAR)
}

pub async fn timed<T>(done: impl Future<Output = T>) -> Duration {
    let started = Instant::now();
    done.await;
    started.elapsed()
}

async fn naive_revokes(far: Duration) -> Tally {
    let mut cluster = Cluster::simulated().await;
    let distance = RedisDistance::of(&mut cluster, far).await;
    let key_factory = KeyFactory::of(&cluster).await;
    let tenant = key_factory.create_tenant("naive").await;
    let keys = key_factory.create_keys(NAIVE_REVOKES, tenant, &["keys:read"], None).await;
    let away = distance.far(&mut cluster, NaiveCache::start).await;
    let (verifiers, revoker) = ([away, NaiveCache::start(&cluster).await], NaiveCache::start(&cluster).await);
    let started = Instant::now();
    let tasks = keys.chunks(NAIVE_REVOKES.div_ceil(NAIVE_TASKS)).enumerate().map(|(task, keys)| {
        let (verifiers, revoker) = (&verifiers, &revoker);
        async move {
            let reader = |n| NaiveReader { process: &verifiers[n % 2], n, evicts: true };
            let mut readers: Vec<NaiveReader> = (0..READERS).map(reader).collect();
            let mut tallies = Vec::new();
            for (turn, key) in keys.iter().enumerate() {
                let schedule = Schedule::for_turn(turn, far);
                tallies.push(race(&mut readers, &[key], schedule, timed(revoker.revoke(task, key))).await);
            }
            Tally::sum(tallies)
        }
    });
    let tally = Tally::sum(future::join_all(tasks).await);
    tally.report(&format!("naive, {far:?} from Redis"), started);
    tally
}

/// The control. The naive cache is wrong while a fill travels to Redis, less the time from a revocation's commit to its
/// DEL: on a machine so slow that nothing is left of it, the distance is made longer.
#[tokio::test(flavor = "multi_thread")]
async fn naive_cache_accepts_revoked_keys() {
    let _serial = serial().await;
    for far in [1, 2, 4, 8].map(|times| FAR * times) {
        if naive_revokes(far).await.accepted_after > 0 {
            return;
        }
    }
    panic!("the naive cache was right, so the race proves nothing");
}

async fn revoked_keys_are_refused(l1: &str) {
    let _serial = serial().await;
    let fixture = RevocationRace::open(l1).await;
    let started = Instant::now();
    let tally = fixture.revokes(REVOKES).await;
    tally.report(&format!("revoke, L1 {l1}"), started);
    assert!(started.elapsed() < Duration::from_secs(180), "the revocations must be dense");
    assert_eq!(tally.changes.len(), REVOKES);
    assert_eq!(tally.after, REVOKES * READERS * AFTER);
    assert!(tally.before >= REVOKES / 2 * READERS);
    assert_eq!(tally.accepted_after, 0);
    // The cache was in use, also in the process that is far from Redis: it filled entries, and was refused where a
    // revocation came first. If it had not used Redis, all answers would have come from Postgres, which is never wrong.
    let far = &fixture.verifiers[0].1;
    let fills = async |outcome| metric(far, "identity_cache_fill_total", &[("outcome", outcome)]).await;
    let (filled, too_late) = (fills("ok").await, fills("cas_refused").await);
    eprintln!("the process that is far filled {filled} times, and {too_late} times too late");
    assert!(filled > 300.0 && too_late > 0.0);
    assert!(tally.unknown * 10 < tally.after, "{} were revoker to come again", tally.unknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_keys_are_refused_with_the_process_cache() {
    revoked_keys_are_refused("on").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_keys_are_refused_with_the_redis_cache_only() {
    revoked_keys_are_refused("off").await;
}
