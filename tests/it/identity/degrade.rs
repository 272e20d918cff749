//! Redis hangs, dies, is cut off or is emptied: no revoked key is accepted, and no valid key is refused because of it.

use std::time::{Duration, Instant};

use futures_util::future;
use nix::sys::signal::Signal;
use time::OffsetDateTime;

use super::{
    fault_proxy::{FaultProxy, Mode},
    metric, percentiles,
    raw_client::RawClient,
    redis_timeouts, serial,
    two_replicas::{TwoReplicas, effective_by, sleep_until},
};
use crate::support::poll_until;

const SECOND: Duration = Duration::from_secs(1);

/// How long a request waits for a Redis that does not respond.
const REDIS_TIMEOUT: Duration = Duration::from_millis(50);

async fn hung(l1: &str) {
    let replicas = TwoReplicas::start(l1).await;
    let (kept, revoked) = (replicas.create_key().await, replicas.create_key().await);
    replicas.warm(&kept).await;
    replicas.warm(&revoked).await;
    let (normal, _) = percentiles(replicas.measure(&replicas.a.1, &kept, 300, 200).await);

    replicas.redis.signal(Signal::SIGSTOP);
    // Well past the second in which the process still uses the keys in its own cache.
    let (mut all, stopped) = (Vec::new(), Instant::now());
    let before = redis_timeouts(&replicas.a.0);
    while stopped.elapsed() < SECOND * 4 {
        all.extend(replicas.measure(&replicas.a.1, &kept, 20, 200).await);
    }
    // A few requests time out before the circuit breaker opens.
    let waited = poll_until("time-outs", SECOND * 30, async || {
        let waited = redis_timeouts(&replicas.a.0) - before;
        (waited >= 3).then_some(waited)
    })
    .await;
    let most = 3 + 1 + usize::try_from(stopped.elapsed().as_secs()).unwrap();
    let (n, worst) = (all.len(), *all.iter().max().unwrap());
    let (p50, p99) = percentiles(all);
    eprintln!(
        "Redis hangs, L1 {l1}: p50 {normal:.1?} before; then p50 {p50:.1?} p99 {p99:.1?}, at most {worst:.1?}, {waited} of \
         {n} waited for Redis"
    );
    assert!(p50 < normal + REDIS_TIMEOUT / 2, "{p50:?}, {normal:?} before");
    // Three failures in a row, and then at most one attempt per second.
    assert!(waited <= most, "a dead Redis must not cost each request its time-out: {waited} of {n}");
    assert!(n > 2 * most, "too slow to show anything: {n}");

    let revoking = Instant::now();
    let reply = replicas.revoke(&replicas.a.1, &revoked).await;
    let (by, answered) = (effective_by(&reply), revoking.elapsed());
    assert!(by - OffsetDateTime::now_utc() < SECOND * 3, "{by}");
    sleep_until(by).await;
    replicas.assert_refused(&revoked).await;
    eprintln!("Redis hangs, L1 {l1}: 202 after {answered:.1?}");
    // The caches are used again, and they have the revocation.
    replicas.redis.signal(Signal::SIGCONT);
    let tier = if l1 == "on" { "l1" } else { "redis" };
    future::join(
        replicas.wait_for_answer_from(&replicas.a.1, tier, &kept),
        replicas.wait_for_answer_from(&replicas.b.1, tier, &kept),
    )
    .await;
    replicas.assert_refused(&revoked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hung_redis_delays_few_requests_and_admits_no_revoked_key() {
    let _serial = serial().await;
    hung("on").await;
    hung("off").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_redis_is_bypassed_and_gets_revocations_on_return() {
    let _serial = serial().await;
    let mut replicas = TwoReplicas::start("on").await;

    let (kept, revoked) = (replicas.create_key().await, replicas.create_key().await);
    replicas.warm(&kept).await;
    replicas.warm(&revoked).await;
    replicas.redis.kill();
    let (p50, p99) = percentiles(replicas.measure(&replicas.a.1, &kept, 500, 200).await);
    eprintln!("Redis is dead: p50 {p50:.1?} p99 {p99:.1?}");
    let by = effective_by(&replicas.revoke(&replicas.a.1, &revoked).await);
    sleep_until(by).await;

    replicas.assert_refused(&revoked).await;

    replicas.redis.restart();
    future::join(
        replicas.wait_for_answer_from(&replicas.a.1, "l1", &kept),
        replicas.wait_for_answer_from(&replicas.b.1, "l1", &kept),
    )
    .await;

    replicas.assert_refused(&revoked).await;

    let sql = replicas.cluster.sql().await;
    poll_until("the outbox is worked off", SECOND * 60, async || {
        let open = "select count(*) from cache_outbox where done_at is null";
        (sql.query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    // The tombstone shows that the revocation reached Redis too, not only Postgres.
    let there = replicas.redis.cli(&["--raw", "getrange", &revoked.redis_key, "0", "0"]);

    assert_eq!(there.trim_end(), "T");
}

/// Starts two replicas; `a` reaches Redis through a proxy that can stall.
async fn with_a_proxy(l1: &str) -> (TwoReplicas, FaultProxy) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let runtime = tokio::runtime::Handle::current();
    let replicas = TwoReplicas::start_with(l1, |cluster| {
        let socket = cluster.redis_url.strip_prefix("unix:").unwrap().into();
        let proxy = tokio::task::block_in_place(|| runtime.block_on(FaultProxy::to(socket)));
        cluster.set("REDIS_URL", format!("redis://127.0.0.1:{}", proxy.port));
        sender.send(proxy).unwrap();
    })
    .await;
    (replicas, receiver.recv().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_cut_off_from_redis_refuses_keys_revoked_elsewhere() {
    let _serial = serial().await;
    let (replicas, proxy) = with_a_proxy("on").await;

    let keys = replicas.create_keys(8).await;

    for (n, key) in keys.iter().enumerate() {
        proxy.set(Mode::Open);
        let other = replicas.create_key().await;
        replicas.wait_for_answer_from(&replicas.a.1, "l1", &other).await;
        replicas.warm(key).await;
        proxy.set(if n % 2 == 0 { Mode::Stalled } else { Mode::Cut });
        let started = Instant::now();
        replicas.revoke(&replicas.b.1, key).await.expect(204);
        replicas.assert_refused(key).await;
        eprintln!("a replica is cut off: revoked after {:.1?}", started.elapsed());
        // Valid keys are still accepted, by way of Postgres.
        replicas.verify(&replicas.a.1, &other).await.expect(200);
    }
}

/// Each thread has one connection, and all threads share the breaker: the successes of others must not hide that one
/// connection is dead.
#[tokio::test(flavor = "multi_thread")]
async fn silently_dead_redis_connection_is_replaced() {
    let _serial = serial().await;
    let (replicas, proxy) = with_a_proxy("off").await;
    let key = replicas.create_key().await;
    replicas.warm(&key).await;
    replicas.wait_for_answer_from(&replicas.a.1, "redis", &key).await;
    proxy.lose();
    replicas.wait_for_answer_from(&replicas.a.1, "redis", &key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_without_redis_is_pending_and_effective_in_time() {
    let _serial = serial().await;
    let (replicas, proxy) = with_a_proxy("on").await;

    for _ in 0..3 {
        let key = replicas.create_key().await;
        proxy.set(Mode::Open);
        replicas.warm(&key).await;
        proxy.set(Mode::Stalled);
        let started = Instant::now();
        let refused_after = async {
            let mut client = RawClient::connect(&replicas.b.1).await;
            while client.get("/keys/self", &key.text).await.status == 200 {}
            started.elapsed()
        };
        let (reply, refused_after) = future::join(replicas.revoke(&replicas.a.1, &key), refused_after).await;
        let answered = started.elapsed();
        eprintln!("the revoker is cut off: refused elsewhere after {refused_after:.1?}, 202 after {answered:.1?}");
        assert!(refused_after < SECOND * 5, "one period of the feed, which is a second: {refused_after:?}");
        sleep_until(effective_by(&reply)).await;
        replicas.assert_refused(&key).await;
    }
    // The other replica sends the revocations to Redis.
    let sql = replicas.cluster.sql().await;

    poll_until("the outbox is worked off", SECOND * 60, async || {
        let open = "select count(*) from cache_outbox where done_at is null";
        (sql.query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_without_wait_applies_within_one_poll() {
    let _serial = serial().await;
    let replicas = TwoReplicas::start("on").await;

    let mut clients = [RawClient::connect(&replicas.a.1).await, RawClient::connect(&replicas.b.1).await];
    let (mut answered, mut refused_after) = (Vec::new(), Vec::new());
    for key in replicas.create_keys(40).await {
        replicas.warm(&key).await;
        let started = Instant::now();
        let path = format!("/keys/{}?wait=false", key.id);
        RawClient::connect(&replicas.a.1).await.send("DELETE", &path, &replicas.admin, None).await.expect(204);
        answered.push(started.elapsed());
        for client in &mut clients {
            while client.get("/keys/self", &key.text).await.status == 200 {}
        }
        refused_after.push(started.elapsed());
    }
    let worst = *refused_after.iter().max().unwrap();

    let ((p50, p99), refused_after) = (percentiles(answered), percentiles(refused_after));

    eprintln!(
        "wait=false: answered p50 {p50:.1?} p99 {p99:.1?}; refused everywhere p50 {:.1?}, at most {worst:.1?}",
        refused_after.0
    );
    assert!(worst < SECOND, "{worst:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_redis_connections_admit_no_revoked_key() {
    let _serial = serial().await;
    let replicas = TwoReplicas::start("on").await;

    let keys = replicas.create_keys(40).await;
    let mut complete = 0;

    for key in &keys {
        replicas.warm(key).await;
        // The connections that poll for invalidations are among them.
        let killed = replicas.redis.cli(&["client", "kill", "type", "normal", "skipme", "yes"]);
        assert!(killed.trim_end().parse::<u32>().unwrap() > 0, "{killed}");
        let reply = replicas.revoke(&replicas.b.1, key).await;
        if reply.status == 202 {
            sleep_until(effective_by(&reply)).await;
        } else {
            reply.expect(204);
            complete += 1;
        }
        replicas.assert_refused(key).await;
    }

    assert!(complete > keys.len() / 2, "{complete}");
}

#[tokio::test(flavor = "multi_thread")]
async fn emptied_redis_admits_no_revoked_key() {
    let _serial = serial().await;
    let replicas = TwoReplicas::start("on").await;

    let old = replicas.create_key().await;
    replicas.warm(&old).await;
    replicas.revoke(&replicas.a.1, &old).await.expect(204);

    let mut took = Vec::new();
    for key in replicas.create_keys(15).await {
        replicas.warm(&key).await;
        assert_eq!(replicas.redis.cli(&["flushall"]).trim_end(), "OK");
        let started = Instant::now();
        replicas.revoke(&replicas.b.1, &key).await.expect(204);
        took.push(started.elapsed());
        replicas.assert_refused(&key).await;
        replicas.assert_refused(&old).await;
    }

    eprintln!("emptied: revoked after p50 {:.1?}", percentiles(took).0);
    assert!(metric(&replicas.a.1, "identity_l1_epoch_bumps_total", &[]).await >= 15.0, "each one is noticed");
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_redis_admits_no_revoked_key() {
    let _serial = serial().await;
    let replicas = TwoReplicas::start("on").await;

    for _ in 0..2 {
        let (kept, key) = (replicas.create_key().await, replicas.create_key().await);
        replicas.warm(&key).await;
        replicas.warm(&kept).await;
        // As DEBUG SLEEP, which a server refuses unless it was started for it.
        let script = "local t=redis.call('TIME')[1] while redis.call('TIME')[1]-t<2 do end return 'awake'";
        let socket = replicas.cluster.redis_url.strip_prefix("unix:").unwrap();
        let mut busy = tokio::process::Command::new("redis-cli");
        let busy = busy.args(["-s", socket, "eval", script, "0"]).output();
        let revoked = async {
            replicas.verify(&replicas.a.1, &kept).await.expect(200);
            let reply = replicas.revoke(&replicas.b.1, &key).await;
            if reply.status == 202 {
                sleep_until(effective_by(&reply)).await;
            } else {
                reply.expect(204);
            }
            replicas.assert_refused(&key).await;
            replicas.verify(&replicas.a.1, &kept).await.expect(200);
        };
        let (said, ()) = future::join(busy, revoked).await;
        let said = String::from_utf8(said.unwrap().stdout).unwrap();
        assert_eq!(said.trim_end(), "awake");
    }
}
