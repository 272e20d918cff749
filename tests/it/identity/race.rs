//! Revocations against readers: whatever request began after the answer to a revocation must be refused.
//!
//! For each key sixteen readers, eight in each of two processes, ask as fast as they can while a third process changes
//! the key; many keys at a time. Half of the keys are revoked the moment their first reader begins, so that filling the
//! caches meets the revocation, and one reader of each evicts the key from Redis before each of its questions, so that
//! they are filled all the time. That reader's process is further from Redis than the others: what it fills in arrives
//! late, and in the naive cache after the revocation's DEL. When the change begins is swept over that reader's question.
//! All instants are of this process' one monotonic clock.

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
    alone,
    line::{Line, Mode},
    metric,
    minted::{KeyFactory, Minted},
    naive::{Naive, NaiveReader},
    percentiles, serve,
    wire::RawClient,
};
use crate::support::{App, Cluster, redis_server::RedisServer};

pub const READERS: usize = 16;
/// Questions of each reader after the change.
pub const AFTER: usize = 2;
const LANES: usize = 40;
const REVOKES: usize = 3000;
const NAIVE_REVOKES: usize = 300;
/// Few, so that a revocation's DEL comes soon after its commit: the less time between them, the more fills it misses.
const NAIVE_LANES: usize = 8;
/// How long a byte travels between Redis and the process that is far from it.
const FAR: Duration = Duration::from_millis(5);

/// What a reader was told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Accepted,
    Refused,
    /// Could not be found out: 503.
    Unknown,
}

/// One reader.
pub trait Contender {
    async fn ask(&mut self, key: &Minted) -> Verdict;
    /// Takes the key out of Redis, as memory pressure or a time-out might.
    async fn evict(&mut self, key: &Minted);
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

/// How a key is raced.
#[derive(Clone, Copy)]
pub struct Course {
    /// Readers that must have been accepted before the change; 0: it meets the first ones.
    pub warm: usize,
    /// How long it waits then. It is no synchronisation: the last of those readers is the far one, so that without a pause
    /// the change would always meet it at the same point.
    pub pause: Duration,
    /// Questions of each reader after it.
    pub after: usize,
}

impl Course {
    /// A lane's courses: every other key is known everywhere before it changes, and the pauses go through the five ways
    /// to and from Redis that evicting, asking and filling are for a reader that is so `far`.
    pub fn sweep(turn: usize, far: Duration) -> Self {
        if turn.is_multiple_of(2) {
            let step = u32::try_from(turn / 2 % 11).unwrap();
            Self { pause: far * step / 2, ..Self::at_once(READERS, AFTER) }
        } else {
            Self::at_once(0, AFTER)
        }
    }

    /// Without a pause.
    pub fn at_once(warm: usize, after: usize) -> Self {
        Self { warm, pause: Duration::ZERO, after }
    }
}

/// Readers ask about `keys` while `change` happens; it answers how long it took.
pub async fn race<C: Contender>(
    readers: &mut [C],
    keys: &[&Minted],
    course: Course,
    change: impl Future<Output = Duration>,
) -> Tally {
    let (changed, accepted, progress) = (OnceLock::<Instant>::new(), AtomicUsize::new(0), Notify::new());
    let (changed, accepted, progress) = (&changed, &accepted, &progress);
    let reading = readers.iter_mut().enumerate().map(|(n, reader)| async move {
        let (mut tally, mut turn) = (Tally::default(), n);
        while tally.after < course.after {
            let key = keys[turn % keys.len()];
            turn += READERS + 1;
            if n == 0 {
                reader.evict(key).await;
            }
            let began = Instant::now();
            let verdict = reader.ask(key).await;
            let is_after = changed.get().is_some_and(|at| began > *at);
            match (verdict, is_after) {
                (Verdict::Unknown, _) => tally.unknown += 1,
                (_, true) => {
                    tally.after += 1;
                    tally.accepted_after += usize::from(verdict == Verdict::Accepted);
                }
                (Verdict::Accepted, false) => {
                    if tally.before == 0 {
                        accepted.fetch_add(1, Ordering::SeqCst);
                    }
                    tally.before += 1;
                    progress.notify_one();
                }
                (Verdict::Refused, false) => {}
            }
        }
        tally
    });
    let changing = async {
        while accepted.load(Ordering::SeqCst) < course.warm {
            progress.notified().await;
        }
        tokio::time::sleep(course.pause).await;
        let took = change.await;
        changed.set(Instant::now()).unwrap();
        took
    };
    let (tallies, took) = future::join(future::join_all(reading), changing).await;
    Tally { changes: vec![took], ..Tally::sum(tallies) }
}

/// A reader of a process of ours.
pub struct Reader {
    wire: RawClient,
    redis: Redis,
    path: &'static str,
    /// The status that means accepted: that of `path` with the scope it needs.
    accepted: u16,
}

impl Contender for Reader {
    async fn ask(&mut self, key: &Minted) -> Verdict {
        match self.wire.get(self.path, &key.text).await.status {
            401 | 403 => Verdict::Refused,
            503 => Verdict::Unknown,
            status if status == self.accepted => Verdict::Accepted,
            status => panic!("{status}"),
        }
    }

    async fn evict(&mut self, key: &Minted) {
        self.redis.del::<(), _>(&key.redis_key).await.unwrap();
    }
}

/// A Redis, and the long line to it. The cluster's own address is the near one, except for what starts `far`.
struct Distance {
    line: Line,
    near: RedisServer,
}

impl Distance {
    async fn of(cluster: &mut Cluster, far: Duration) -> Self {
        let near = RedisServer::start();
        let line = Line::to(near.socket()).await;
        line.set(Mode::Long(far));
        cluster.redis_url = near.url();
        Self { line, near }
    }

    async fn far<T>(&self, cluster: &mut Cluster, start: impl AsyncFnOnce(&Cluster) -> T) -> T {
        cluster.redis_url = format!("redis://127.0.0.1:{}", self.line.port);
        let started = start(cluster).await;
        cluster.redis_url = self.near.url();
        started
    }
}

/// An installation with two processes that are asked, of which the first is far from Redis, and one that is told.
pub struct RevocationRace {
    pub asked: [(App, String); 2],
    told: (App, String),
    pub mint: KeyFactory,
    admin: String,
    redis: Redis,
    pub cluster: Cluster,
    _distance: Distance,
}

impl RevocationRace {
    pub async fn open(l1: &str) -> Self {
        let mut cluster = Cluster::simulated().await;
        let distance = Distance::of(&mut cluster, FAR).await;
        cluster.set("IDENTITY_L1", l1).set("RUST_LOG", "error,app::startup=info").set("DB_MAX_CONNS", 30);
        let mint = KeyFactory::of(&cluster).await;
        let admin = cluster.key("acme", "admin");
        let redis = redis::client(&RedisConfig::parse(&cluster.redis_url).unwrap(), Duration::from_secs(5)).unwrap();
        let far = distance.far(&mut cluster, async |cluster| serve(cluster)).await;
        let (asked, told) = ([far, serve(&cluster)], serve(&cluster));
        Self { cluster, mint, admin, asked, told, redis, _distance: distance }
    }

    pub async fn readers(&self, path: &'static str, accepted: u16) -> Vec<Reader> {
        let open = (0..READERS).map(|n| async move {
            let wire = RawClient::open(&self.asked[n % 2].1).await;
            Reader { wire, redis: self.redis.clone(), path, accepted }
        });
        future::join_all(open).await
    }

    /// Tells the third process, and demands this status.
    pub async fn tell(&self, method: &str, path: String, body: Option<Value>, status: u16) -> Value {
        let mut wire = RawClient::open(&self.told.1).await;
        wire.ask(method, &path, &self.admin, body.as_ref()).await.expect(status).body()
    }

    /// Races each key, many at a time; the course is of the key's turn in its lane.
    pub async fn laps<'a, F: Future<Output = Duration>>(
        &'a self,
        keys: &'a [Minted],
        lanes: usize,
        (path, accepted): (&'static str, u16),
        course: impl Fn(usize) -> Course,
        change: impl Fn(&'a Minted) -> F,
    ) -> Tally {
        let (course, change) = (&course, &change);
        let lanes = (0..lanes).map(|lane| async move {
            let mut readers = self.readers(path, accepted).await;
            let mut tallies = Vec::new();
            for (turn, key) in keys.iter().skip(lane).step_by(lanes).enumerate() {
                tallies.push(race(&mut readers, &[key], course(turn), change(key)).await);
            }
            Tally::sum(tallies)
        });
        Tally::sum(future::join_all(lanes).await)
    }

    async fn revokes(&self, n: usize) -> Tally {
        let tenant = self.mint.tenant("revoked").await;
        let keys = self.mint.keys(n, tenant, &["keys:read"], None).await;
        let revoke = |key: &Minted| timed(self.tell("DELETE", format!("/keys/{}", key.id), None, 204));
        self.laps(&keys, LANES, ("/keys/self", 200), sweep, revoke).await
    }
}

/// The courses of a lane in the arena.
pub fn sweep(turn: usize) -> Course {
    Course::sweep(turn, FAR)
}

pub async fn timed<T>(done: impl Future<Output = T>) -> Duration {
    let started = Instant::now();
    done.await;
    started.elapsed()
}

async fn naive_revokes(far: Duration) -> Tally {
    let mut cluster = Cluster::simulated().await;
    let distance = Distance::of(&mut cluster, far).await;
    let mint = KeyFactory::of(&cluster).await;
    let tenant = mint.tenant("naive").await;
    let keys = mint.keys(NAIVE_REVOKES, tenant, &["keys:read"], None).await;
    let away = distance.far(&mut cluster, Naive::start).await;
    let (asked, told) = ([away, Naive::start(&cluster).await], Naive::start(&cluster).await);
    let started = Instant::now();
    let lanes = keys.chunks(NAIVE_REVOKES.div_ceil(NAIVE_LANES)).enumerate().map(|(lane, keys)| {
        let (asked, told) = (&asked, &told);
        async move {
            let reader = |n| NaiveReader { process: &asked[n % 2], n, evicts: true };
            let mut readers: Vec<NaiveReader> = (0..READERS).map(reader).collect();
            let mut tallies = Vec::new();
            for (turn, key) in keys.iter().enumerate() {
                let course = Course::sweep(turn, far);
                tallies.push(race(&mut readers, &[key], course, timed(told.revoke(lane, key))).await);
            }
            Tally::sum(tallies)
        }
    });
    let tally = Tally::sum(future::join_all(lanes).await);
    tally.report(&format!("naive, {far:?} from Redis"), started);
    tally
}

/// The control. Its window is the time a fill travels, less that between a revocation's commit and its DEL: on a machine
/// so slow that nothing is left of it, the way is made longer.
#[tokio::test(flavor = "multi_thread")]
async fn the_naive_cache_accepts_revoked_keys() {
    let _alone = alone().await;
    for far in [1, 2, 4, 8].map(|times| FAR * times) {
        if naive_revokes(far).await.accepted_after > 0 {
            return;
        }
    }
    panic!("a race that this one survives shows nothing");
}

async fn revoked_keys_are_refused(l1: &str) {
    let _alone = alone().await;
    let arena = RevocationRace::open(l1).await;
    let started = Instant::now();
    let tally = arena.revokes(REVOKES).await;
    tally.report(&format!("revoke, L1 {l1}"), started);
    assert!(started.elapsed() < Duration::from_secs(180), "the revocations must be dense");
    assert_eq!(tally.changes.len(), REVOKES);
    assert_eq!(tally.after, REVOKES * READERS * AFTER);
    assert!(tally.before >= REVOKES / 2 * READERS);
    assert_eq!(tally.accepted_after, 0);
    // The cache was at work, also in the process that is far: it filled, and was refused where a revocation came first.
    // With Redis left alone Postgres would answer, which is wrong about nobody.
    let far = &arena.asked[0].1;
    let fills = async |outcome| metric(far, "identity_cache_fill_total", &[("outcome", outcome)]).await;
    let (filled, too_late) = (fills("ok").await, fills("cas_refused").await);
    eprintln!("the process that is far filled {filled} times, and {too_late} times too late");
    assert!(filled > 300.0 && too_late > 0.0);
    assert!(tally.unknown * 10 < tally.after, "{} were told to come again", tally.unknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_thousand_revoked_keys_none_is_accepted_with_keys_kept_in_the_process() {
    revoked_keys_are_refused("on").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_thousand_revoked_keys_none_is_accepted_with_keys_kept_in_redis_only() {
    revoked_keys_are_refused("off").await;
}
