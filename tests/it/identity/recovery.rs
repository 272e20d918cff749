//! What comes back from the past: values put back, servers restarted with old files, processes that slept; and forgeries.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use app::{config::redis::RedisConfig, core::redis};
use fred::{bytes::Bytes, clients::Client as Redis, interfaces::KeysInterface};
use futures_util::{StreamExt, future, stream};
use nix::sys::signal::Signal;

use super::{alone, metric, minted::Minted, percentiles, stage::TwoReplicas, wire::RawClient};
use crate::support::eventually;

const SECOND: Duration = Duration::from_secs(1);

/// The stage's Redis, to read and to plant values byte by byte.
struct Planter(Redis);

impl Planter {
    fn of(stage: &TwoReplicas) -> Self {
        let config = RedisConfig::parse(&stage.cluster.redis_url).unwrap();
        Self(redis::client(&config, SECOND * 5).unwrap())
    }

    async fn get(&self, key: &str) -> Vec<u8> {
        self.0.get::<Bytes, _>(key).await.unwrap().to_vec()
    }

    async fn set(&self, key: &str, value: &[u8]) {
        self.0.set::<(), _, _>(key, Bytes::copy_from_slice(value), None, None, false).await.unwrap();
    }
}

/// How long a revoked key is accepted from now on: until it was refused for two seconds. The feed tells once a second, on
/// a busy machine later; what it never told would be accepted for ever. `before`: done before each round of questions.
async fn accepted_until(wires: &mut [RawClient], key: &Minted, before: impl AsyncFn()) -> Duration {
    let (started, mut last) = (Instant::now(), Duration::ZERO);
    while started.elapsed() < last + SECOND * 2 {
        before().await;
        for wire in &mut *wires {
            match wire.get("/keys/self", &key.text).await.status {
                401 => {}
                200 => last = started.elapsed(),
                status => panic!("{status}"),
            }
        }
        assert!(last < SECOND * 5, "one period of the feed, which is a second: {last:?}");
    }
    last
}

async fn planted(l1: &str) {
    let stage = TwoReplicas::open(l1).await;
    stage.settled().await;
    let redis = Planter::of(&stage);
    let (old, good, other) = (stage.key().await, stage.key().await, stage.key().await);
    for key in [&old, &good, &other] {
        stage.warm(key).await;
    }
    let value = redis.get(&old.redis_key).await;
    assert_eq!(value[0], b'V');
    stage.revoke(&stage.b.1, &old).await.expect(204);
    let tombstone = redis.get(&old.redis_key).await;
    assert_eq!(tombstone[0], b'T');

    // The moment before the feed has told is the worst; so put it back again and again.
    let mut wires = [RawClient::open(&stage.a.1).await, RawClient::open(&stage.b.1).await];
    let last = accepted_until(&mut wires, &old, async || redis.set(&old.redis_key, &value).await).await;
    eprintln!("an old value is put back, L1 {l1}: accepted until {last:.1?}");

    // Another's value, another's tombstone, and a value with any one byte changed are worth nothing.
    redis.set(&old.redis_key, &redis.get(&other.redis_key).await).await;
    stage.refused(&old).await;
    let genuine = redis.get(&good.redis_key).await;
    let bad_macs = async || {
        let [a, b] = [&stage.a.1, &stage.b.1].map(|base| metric(base, "identity_mac_fail_total", &[]));
        a.await + b.await
    };
    let before = bad_macs().await;
    for (n, forged) in [tombstone, vec![b'N'; 33], vec![b'T'; 41], vec![b'V'; 300], Vec::new()].iter().enumerate() {
        redis.set(&good.redis_key, forged).await;
        for wire in &mut wires {
            let status = wire.get("/keys/self", &good.text).await.status;
            assert_eq!(status, 200, "forgery {n} sends nobody away");
        }
    }
    for at in (0..genuine.len()).step_by(7) {
        let mut forged = genuine.clone();
        forged[at] ^= 1;
        redis.set(&good.redis_key, &forged).await;
        wires[0].get("/keys/self", &good.text).await.expect(200);
        redis.set(&old.redis_key, &forged).await;
        wires[0].get("/keys/self", &old.text).await.expect(401);
    }
    let unbelieved = bad_macs().await - before;
    assert!(unbelieved >= 4.0, "forgeries are counted: {unbelieved}");
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_values_old_or_forged_let_nobody_in_and_send_nobody_away() {
    let _alone = alone().await;
    planted("on").await;
    planted("off").await;
}

async fn restarted(l1: &str) {
    let mut stage = TwoReplicas::open(l1).await;
    stage.settled().await;
    let key = stage.key().await;
    stage.warm(&key).await;
    // What a server that lost its last second, or was restored, would come up with.
    let copy = tempfile::TempDir::new().unwrap();
    let copied = Command::new("cp").arg("-a").arg(stage.redis.dir().join(".")).arg(copy.path()).status().unwrap();
    assert!(copied.success());
    stage.revoke(&stage.b.1, &key).await.expect(204);
    stage.redis.kill();
    let files = "appendonlydir";
    std::fs::remove_dir_all(stage.redis.dir().join(files)).unwrap();
    let copied = Command::new("cp").arg("-a").arg(copy.path().join(files)).arg(stage.redis.dir()).status().unwrap();
    assert!(copied.success());
    stage.redis.restart();
    let there = stage.redis.cli(&["--raw", "getrange", &key.redis_key, "0", "0"]);
    assert_eq!(there.trim_end(), "V", "the server forgot the revocation");
    let mut wires = [RawClient::open(&stage.a.1).await, RawClient::open(&stage.b.1).await];
    let last = accepted_until(&mut wires, &key, async || ()).await;
    eprintln!("Redis restarted from an old file, L1 {l1}: accepted until {last:.1?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_comes_back_with_an_old_file_is_found_out_by_the_feed() {
    let _alone = alone().await;
    restarted("on").await;
    restarted("off").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_slept_through_a_revocation_refuses_when_it_wakes_up() {
    let _alone = alone().await;
    let stage = TwoReplicas::open("on").await;
    for turn in 0..3 {
        let key = stage.key().await;
        stage.warm(&key).await;
        let mut ready = RawClient::open(&stage.a.1).await;
        ready.get("/keys/self", &key.text).await.expect(200);
        stage.a.0.signal(Signal::SIGSTOP);
        let stopped = Instant::now();
        stage.revoke(&stage.b.1, &key).await.expect(204);
        eprintln!("another process sleeps: revoked after {:.1?}", stopped.elapsed());
        // Longer than any fence and the age of a feed, or just so long that the answer is out.
        if turn == 0 {
            tokio::time::sleep_until((stopped + SECOND * 5).into()).await;
        }
        // Waits in its socket when it wakes up: that comes before any news.
        let first = ready.get("/keys/self", &key.text);
        let wake = async { stage.a.0.signal(Signal::SIGCONT) };
        let (first, ()) = future::join(first, wake).await;
        first.expect(401);
        stage.refused(&key).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_revocations_at_once_are_all_heard() {
    const BURST: usize = 5000;
    let _alone = alone().await;
    let stage = TwoReplicas::open("on").await;
    let keys = stage.keys(BURST).await;
    let statuses = async |expect: u16| {
        let lanes = keys.chunks(BURST / 20).map(|keys| {
            let bases = [&stage.a.1, &stage.b.1];
            async move {
                let mut wires = [RawClient::open(bases[0]).await, RawClient::open(bases[1]).await];
                for key in keys {
                    for wire in &mut wires {
                        // A look-up that found no turn is asked again.
                        let reply = loop {
                            let reply = wire.get("/keys/self", &key.text).await;
                            if reply.status != 503 {
                                break reply;
                            }
                        };
                        reply.expect(expect);
                    }
                }
            }
        });
        future::join_all(lanes).await;
    };
    statuses(200).await;
    let started = Instant::now();
    let took: Vec<Duration> = stream::iter(&keys)
        .map(|key| async {
            let asked = Instant::now();
            stage.revoke(&stage.b.1, key).await.expect(204);
            asked.elapsed()
        })
        .buffer_unordered(100)
        .collect()
        .await;
    let (all, (p50, p99)) = (started.elapsed(), percentiles(took));
    statuses(401).await;
    eprintln!("a burst of {BURST}: {all:.1?} in all, 100 at a time, p50 {p50:.1?} p99 {p99:.1?}");
    let done = "select count(*) from cache_outbox where done_at is not null";
    let done: i64 = stage.cluster.sql().await.query_one(done, &[]).await.unwrap().get(0);
    assert_eq!(done, 5000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspension_told_late_does_not_undo_the_resumption_after_it() {
    let _alone = alone().await;
    let stage = TwoReplicas::open("on").await;
    let key = stage.key().await;
    stage.warm(&key).await;
    stage.redis.signal(Signal::SIGSTOP);
    let said = stage.cluster.run(&["tenants", "suspend", "--tenant", "keys"]);
    assert!(said.contains("redis does not answer"), "{said}");
    stage.redis.signal(Signal::SIGCONT);
    let said = stage.cluster.run(&["tenants", "resume", "--tenant", "keys"]);
    assert!(!said.contains("redis does not answer"), "{said}");
    let sql = stage.cluster.sql().await;
    eventually("the outbox is worked off", SECOND * 60, async || {
        let open = "select count(*) from cache_outbox where done_at is null";
        (sql.query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    stage.asks(&stage.a.1, &key).await.expect(200);
    stage.asks(&stage.b.1, &key).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_repeated_while_the_first_is_not_told_promises_nothing_early() {
    let _alone = alone().await;
    let stage = TwoReplicas::open("on").await;
    for key in stage.keys(20).await {
        stage.warm(&key).await;
        // What a process leaves behind that dies between its commit and telling Redis.
        let revoked =
            "with gone as (update api_key set revoked_at = now(), ver = ver + 1, changed_at = now() where id = $1
                         returning key_hash, ver)
                       insert into cache_outbox (key_hash, ver, op) select key_hash, ver, 1 from gone";
        assert_eq!(stage.cluster.sql().await.execute(revoked, &[&key.id]).await.unwrap(), 1);
        // Its client asks again, elsewhere.
        stage.revoke(&stage.b.1, &key).await.expect(204);
        stage.refused(&key).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_in_the_outbox_that_was_overtaken_leaves_no_tombstone() {
    let _alone = alone().await;
    let stage = TwoReplicas::open("on").await;
    let sql = stage.cluster.sql().await;
    let (good, revoked) = (stage.key().await, stage.key().await);
    stage.warm(&good).await;
    // As if Redis had not been told of refusals 5 s ago: of one that holds, and of one after which the key changed.
    sql.execute("update api_key set ver = 2, revoked_at = now(), changed_at = now() where id = $1", &[&revoked.id])
        .await
        .unwrap();
    sql.execute("update api_key set ver = 3, changed_at = now() where id = $1", &[&good.id]).await.unwrap();
    let late = "insert into cache_outbox (key_hash, ver, op, at)
                select key_hash, 2, 1, now() - interval '5 seconds' from api_key where id = any($1)";
    assert_eq!(sql.execute(late, &[&vec![good.id, revoked.id]]).await.unwrap(), 2);
    // Nobody asks for the keys meanwhile: what is in Redis then is what the outbox put there.
    let open = "select count(*) from cache_outbox where done_at is null";
    eventually("the outbox is worked off", SECOND * 60, async || {
        (sql.query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    let kind = |key: &Minted| stage.redis.cli(&["getrange", &key.redis_key, "0", "0"]).trim_end().to_owned();
    assert_eq!((kind(&revoked).as_str(), kind(&good).as_str()), ("T", ""));
    stage.warm(&good).await;
    stage.refused(&revoked).await;
}
