//! Old state that returns: values written back to Redis, servers restarted with old files, and processes that were
//! suspended; and forged values.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use app::{config::redis::RedisConfig, core::redis};
use fred::{bytes::Bytes, clients::Client as Redis, interfaces::KeysInterface};
use futures_util::{StreamExt, future, stream};
use nix::sys::signal::Signal;

use super::{key_factory::TestKey, metric, percentiles, raw_client::RawClient, serial, two_replicas::TwoReplicas};
use crate::support::poll_until;

const SECOND: Duration = Duration::from_secs(1);

/// Reads and writes the values in the replicas' Redis byte by byte.
struct RawRedis(Redis);

impl RawRedis {
    fn of(replicas: &TwoReplicas) -> Self {
        let config = RedisConfig::parse(&replicas.cluster.redis_url).unwrap();
        Self(redis::client(&config, SECOND * 5).unwrap())
    }

    async fn get(&self, key: &str) -> Vec<u8> {
        self.0.get::<Bytes, _>(key).await.unwrap().to_vec()
    }

    async fn set(&self, key: &str, value: &[u8]) {
        self.0.set::<(), _, _>(key, Bytes::copy_from_slice(value), None, None, false).await.unwrap();
    }
}

/// Returns how long a revoked key is accepted from now on: until it was refused for two seconds. The feed is read once
/// a second, on a busy machine later; a revocation that it did not contain would be accepted without a limit. `before`
/// runs before each round of requests.
async fn accepted_until(clients: &mut [RawClient], key: &TestKey, before: impl AsyncFn()) -> Duration {
    let (started, mut last) = (Instant::now(), Duration::ZERO);
    while started.elapsed() < last + SECOND * 2 {
        before().await;
        for client in &mut *clients {
            match client.get("/keys/self", &key.text).await.status {
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
    let replicas = TwoReplicas::start(l1).await;
    replicas.wait_until_revocations_are_fast().await;
    let redis = RawRedis::of(&replicas);
    let (old, good, other) = (replicas.create_key().await, replicas.create_key().await, replicas.create_key().await);
    for key in [&old, &good, &other] {
        replicas.warm(key).await;
    }
    let value = redis.get(&old.redis_key).await;
    assert_eq!(value[0], b'V');
    replicas.revoke(&replicas.b.1, &old).await.expect(204);
    let tombstone = redis.get(&old.redis_key).await;
    assert_eq!(tombstone[0], b'T');

    // The moment before the feed is read is the worst, so the value is written back again and again.
    let mut clients = [RawClient::connect(&replicas.a.1).await, RawClient::connect(&replicas.b.1).await];
    let last = accepted_until(&mut clients, &old, async || redis.set(&old.redis_key, &value).await).await;
    eprintln!("an old value is put back, L1 {l1}: accepted until {last:.1?}");

    // A value or tombstone of another key, and a value with any one byte changed, are not accepted.
    redis.set(&old.redis_key, &redis.get(&other.redis_key).await).await;
    replicas.assert_refused(&old).await;
    let genuine = redis.get(&good.redis_key).await;
    let bad_macs = async || {
        let [a, b] = [&replicas.a.1, &replicas.b.1].map(|base| metric(base, "identity_mac_fail_total", &[]));
        a.await + b.await
    };
    let before = bad_macs().await;
    for (n, forged) in [tombstone, vec![b'N'; 33], vec![b'T'; 41], vec![b'V'; 300], Vec::new()].iter().enumerate() {
        redis.set(&good.redis_key, forged).await;
        for client in &mut clients {
            let status = client.get("/keys/self", &good.text).await.status;
            assert_eq!(status, 200, "forgery {n} made a valid key be refused");
        }
    }
    for at in (0..genuine.len()).step_by(7) {
        let mut forged = genuine.clone();
        forged[at] ^= 1;
        redis.set(&good.redis_key, &forged).await;
        clients[0].get("/keys/self", &good.text).await.expect(200);
        redis.set(&old.redis_key, &forged).await;
        clients[0].get("/keys/self", &old.text).await.expect(401);
    }
    let rejected = bad_macs().await - before;
    assert!(rejected >= 4.0, "forgeries are counted: {rejected}");
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_cache_values_admit_and_refuse_no_key_wrongly() {
    let _serial = serial().await;
    planted("on").await;
    planted("off").await;
}

async fn restarted(l1: &str) {
    let mut replicas = TwoReplicas::start(l1).await;
    replicas.wait_until_revocations_are_fast().await;
    let key = replicas.create_key().await;
    replicas.warm(&key).await;
    // These files are what a server that lost its last second, or was restored, would start with.
    let copy = tempfile::TempDir::new().unwrap();
    let copied = Command::new("cp").arg("-a").arg(replicas.redis.dir().join(".")).arg(copy.path()).status().unwrap();
    assert!(copied.success());
    replicas.revoke(&replicas.b.1, &key).await.expect(204);
    replicas.redis.kill();
    let files = "appendonlydir";
    std::fs::remove_dir_all(replicas.redis.dir().join(files)).unwrap();
    let copied = Command::new("cp").arg("-a").arg(copy.path().join(files)).arg(replicas.redis.dir()).status().unwrap();
    assert!(copied.success());
    replicas.redis.restart();
    let there = replicas.redis.cli(&["--raw", "getrange", &key.redis_key, "0", "0"]);
    assert_eq!(there.trim_end(), "V", "the server forgot the revocation");
    let mut clients = [RawClient::connect(&replicas.a.1).await, RawClient::connect(&replicas.b.1).await];
    let last = accepted_until(&mut clients, &key, async || ()).await;
    eprintln!("Redis restarted from an old file, L1 {l1}: accepted until {last:.1?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_restarted_from_an_old_file_is_corrected_by_the_feed() {
    let _serial = serial().await;
    restarted("on").await;
    restarted("off").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_process_refuses_a_key_revoked_meanwhile() {
    let _serial = serial().await;
    let replicas = TwoReplicas::start("on").await;

    for turn in 0..3 {
        let key = replicas.create_key().await;
        replicas.warm(&key).await;
        let mut ready = RawClient::connect(&replicas.a.1).await;
        ready.get("/keys/self", &key.text).await.expect(200);
        replicas.a.0.signal(Signal::SIGSTOP);
        let stopped = Instant::now();
        replicas.revoke(&replicas.b.1, &key).await.expect(204);
        eprintln!("another process sleeps: revoked after {:.1?}", stopped.elapsed());
        // Longer than any fence and the age of a feed, or just until the response to the revocation.
        if turn == 0 {
            tokio::time::sleep_until((stopped + SECOND * 5).into()).await;
        }
        // The request waits in the socket when the process resumes, and is read before any invalidation.
        let first = ready.get("/keys/self", &key.text);
        let wake = async { replicas.a.0.signal(Signal::SIGCONT) };
        let (first, ()) = future::join(first, wake).await;
        first.expect(401);
        replicas.assert_refused(&key).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_concurrent_revocations_all_apply() {
    const BURST: usize = 5000;
    let _serial = serial().await;
    let replicas = TwoReplicas::start("on").await;

    let keys = replicas.create_keys(BURST).await;
    let statuses = async |expect: u16| {
        let tasks = keys.chunks(BURST / 20).map(|keys| {
            let bases = [&replicas.a.1, &replicas.b.1];
            async move {
                let mut clients = [RawClient::connect(bases[0]).await, RawClient::connect(bases[1]).await];
                for key in keys {
                    for client in &mut clients {
                        // A look-up that got no slot is repeated.
                        let reply = loop {
                            let reply = client.get("/keys/self", &key.text).await;
                            if reply.status != 503 {
                                break reply;
                            }
                        };
                        reply.expect(expect);
                    }
                }
            }
        });
        future::join_all(tasks).await;
    };
    statuses(200).await;
    let started = Instant::now();
    let took: Vec<Duration> = stream::iter(&keys)
        .map(|key| async {
            let started_at = Instant::now();
            replicas.revoke(&replicas.b.1, key).await.expect(204);
            started_at.elapsed()
        })
        .buffer_unordered(100)
        .collect()
        .await;
    let (all, (p50, p99)) = (started.elapsed(), percentiles(took));
    statuses(401).await;
    eprintln!("a burst of {BURST}: {all:.1?} in all, 100 at a time, p50 {p50:.1?} p99 {p99:.1?}");
    let done = "select count(*) from cache_outbox where done_at is not null";

    let done: i64 = replicas.cluster.sql().await.query_one(done, &[]).await.unwrap().get(0);

    assert_eq!(done, 5000);
}

#[tokio::test(flavor = "multi_thread")]
async fn delayed_suspension_does_not_undo_a_later_resumption() {
    let _serial = serial().await;
    let replicas = TwoReplicas::start("on").await;

    let key = replicas.create_key().await;
    replicas.warm(&key).await;
    replicas.redis.signal(Signal::SIGSTOP);
    let output = replicas.cluster.run(&["tenants", "suspend", "--tenant", "keys"]);
    assert!(output.contains("redis does not answer"), "{output}");

    replicas.redis.signal(Signal::SIGCONT);
    let output = replicas.cluster.run(&["tenants", "resume", "--tenant", "keys"]);
    assert!(!output.contains("redis does not answer"), "{output}");

    let sql = replicas.cluster.sql().await;
    poll_until("the outbox is worked off", SECOND * 60, async || {
        let open = "select count(*) from cache_outbox where done_at is null";
        (sql.query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;

    replicas.verify(&replicas.a.1, &key).await.expect(200);
    replicas.verify(&replicas.b.1, &key).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_revocation_waits_for_the_first_to_propagate() {
    let _serial = serial().await;
    let replicas = TwoReplicas::start("on").await;

    for key in replicas.create_keys(20).await {
        replicas.warm(&key).await;
        // As left behind by a process that dies between its commit and its message to Redis.
        let revoked =
            "with gone as (update api_key set revoked_at = now(), ver = ver + 1, changed_at = now() where id = $1
                         returning key_hash, ver)
                       insert into cache_outbox (key_hash, ver, op) select key_hash, ver, 1 from gone";
        assert_eq!(replicas.cluster.sql().await.execute(revoked, &[&key.id]).await.unwrap(), 1);
        // The client repeats the revocation at another process.
        replicas.revoke(&replicas.b.1, &key).await.expect(204);
        replicas.assert_refused(&key).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outdated_outbox_entry_leaves_no_tombstone() {
    let _serial = serial().await;
    let replicas = TwoReplicas::start("on").await;
    let sql = replicas.cluster.sql().await;

    let (good, revoked) = (replicas.create_key().await, replicas.create_key().await);
    replicas.warm(&good).await;
    // As if Redis had missed refusals of 5 s ago: of one that holds, and of one after which the key changed.
    sql.execute("update api_key set ver = 2, revoked_at = now(), changed_at = now() where id = $1", &[&revoked.id])
        .await
        .unwrap();
    sql.execute("update api_key set ver = 3, changed_at = now() where id = $1", &[&good.id]).await.unwrap();
    let late = "insert into cache_outbox (key_hash, ver, op, at)
                select key_hash, 2, 1, now() - interval '5 seconds' from api_key where id = any($1)";

    assert_eq!(sql.execute(late, &[&vec![good.id, revoked.id]]).await.unwrap(), 2);

    // No request uses the keys meanwhile: what is in Redis then was written by the outbox.
    let open = "select count(*) from cache_outbox where done_at is null";
    poll_until("the outbox is worked off", SECOND * 60, async || {
        (sql.query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    let kind = |key: &TestKey| replicas.redis.cli(&["getrange", &key.redis_key, "0", "0"]).trim_end().to_owned();

    assert_eq!((kind(&revoked).as_str(), kind(&good).as_str()), ("T", ""));

    replicas.warm(&good).await;
    replicas.assert_refused(&revoked).await;
}
