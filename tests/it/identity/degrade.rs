//! Redis hangs, dies, is cut off, is emptied: nobody is let in who should not be, and nobody is sent away because of it.

use std::time::{Duration, Instant};

use futures_util::future;
use nix::sys::signal::Signal;
use time::OffsetDateTime;

use super::{
    alone,
    line::{Line, Mode},
    metric, percentiles,
    stage::{TwoReplicas, effective_by, until},
    unanswered,
    wire::RawClient,
};
use crate::support::eventually;

const SECOND: Duration = Duration::from_secs(1);

/// How long one waits that asks a Redis which does not answer.
const TIME_OUT: Duration = Duration::from_millis(50);

async fn hung(l1: &str) {
    let stage = TwoReplicas::open(l1).await;
    let (kept, revoked) = (stage.key().await, stage.key().await);
    stage.warm(&kept).await;
    stage.warm(&revoked).await;
    let (normal, _) = percentiles(stage.times(&stage.a.1, &kept, 300, 200).await);

    stage.redis.signal(Signal::SIGSTOP);
    // Well past the second in which keys in the process are still believed.
    let (mut all, stopped) = (Vec::new(), Instant::now());
    let before = unanswered(&stage.a.0);
    while stopped.elapsed() < SECOND * 4 {
        all.extend(stage.times(&stage.a.1, &kept, 20, 200).await);
    }
    // Some find out.
    let waited = eventually("time-outs", SECOND * 30, async || {
        let waited = unanswered(&stage.a.0) - before;
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
    assert!(p50 < normal + TIME_OUT / 2, "{p50:?}, {normal:?} before");
    // Three failures in a row, and then one try a second at most.
    assert!(waited <= most, "a dead Redis must not cost each request its time-out: {waited} of {n}");
    assert!(n > 2 * most, "too slow to show anything: {n}");

    let revoking = Instant::now();
    let reply = stage.revoke(&stage.a.1, &revoked).await;
    let (by, answered) = (effective_by(&reply), revoking.elapsed());
    assert!(by - OffsetDateTime::now_utc() < SECOND * 3, "{by}");
    until(by).await;
    stage.refused(&revoked).await;
    eprintln!("Redis hangs, L1 {l1}: 202 after {answered:.1?}");
    // The caches are used again, and the revocation is known to them.
    stage.redis.signal(Signal::SIGCONT);
    let tier = if l1 == "on" { "l1" } else { "redis" };
    future::join(stage.answers_from(&stage.a.1, tier, &kept), stage.answers_from(&stage.b.1, tier, &kept)).await;
    stage.refused(&revoked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_hangs_costs_no_request_its_time_out_and_opens_nothing() {
    let _alone = alone().await;
    hung("on").await;
    hung("off").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_died_is_done_without_and_told_of_revocations_when_it_is_back() {
    let _alone = alone().await;
    let mut stage = TwoReplicas::open("on").await;
    let (kept, revoked) = (stage.key().await, stage.key().await);
    stage.warm(&kept).await;
    stage.warm(&revoked).await;
    stage.redis.kill();
    let (p50, p99) = percentiles(stage.times(&stage.a.1, &kept, 500, 200).await);
    eprintln!("Redis is dead: p50 {p50:.1?} p99 {p99:.1?}");
    let by = effective_by(&stage.revoke(&stage.a.1, &revoked).await);
    until(by).await;
    stage.refused(&revoked).await;
    stage.redis.restart();
    future::join(stage.answers_from(&stage.a.1, "l1", &kept), stage.answers_from(&stage.b.1, "l1", &kept)).await;
    stage.refused(&revoked).await;
    let sql = stage.cluster.sql().await;
    eventually("the outbox is worked off", SECOND * 60, async || {
        let open = "select count(*) from cache_outbox where done_at is null";
        (sql.query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    // The tombstone: told to Redis, not only known to Postgres.
    let there = stage.redis.cli(&["--raw", "getrange", &revoked.redis_key, "0", "0"]);
    assert_eq!(there.trim_end(), "T");
}

/// A replica whose line to Redis can be held, besides one with a good one.
async fn with_a_line(l1: &str) -> (TwoReplicas, Line) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let runtime = tokio::runtime::Handle::current();
    let stage = TwoReplicas::with(l1, |cluster| {
        let socket = cluster.redis_url.strip_prefix("unix:").unwrap().into();
        let line = tokio::task::block_in_place(|| runtime.block_on(Line::to(socket)));
        cluster.set("REDIS_URL", format!("redis://127.0.0.1:{}", line.port));
        sender.send(line).unwrap();
    })
    .await;
    (stage, receiver.recv().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_cut_off_from_redis_accepts_nothing_that_was_revoked_elsewhere() {
    let _alone = alone().await;
    let (stage, line) = with_a_line("on").await;
    let keys = stage.keys(8).await;
    for (n, key) in keys.iter().enumerate() {
        line.set(Mode::Open);
        let other = stage.key().await;
        stage.answers_from(&stage.a.1, "l1", &other).await;
        stage.warm(key).await;
        line.set(if n % 2 == 0 { Mode::Held } else { Mode::Cut });
        let started = Instant::now();
        stage.revoke(&stage.b.1, key).await.expect(204);
        stage.refused(key).await;
        eprintln!("a replica is cut off: revoked after {:.1?}", started.elapsed());
        // Those that are good go on, by way of Postgres.
        stage.asks(&stage.a.1, &other).await.expect(200);
    }
}

/// Each thread has one connection, and the breaker is everybody's: others' successes must not hide that one is dead.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_died_without_a_word_is_replaced() {
    let _alone = alone().await;
    let (stage, line) = with_a_line("off").await;
    let key = stage.key().await;
    stage.warm(&key).await;
    stage.answers_from(&stage.a.1, "redis", &key).await;
    line.lose();
    stage.answers_from(&stage.a.1, "redis", &key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoker_cut_off_from_redis_says_pending_and_is_heard_by_then() {
    let _alone = alone().await;
    let (stage, line) = with_a_line("on").await;
    for _ in 0..3 {
        let key = stage.key().await;
        line.set(Mode::Open);
        stage.warm(&key).await;
        line.set(Mode::Held);
        let started = Instant::now();
        let heard = async {
            let mut wire = RawClient::open(&stage.b.1).await;
            while wire.get("/keys/self", &key.text).await.status == 200 {}
            started.elapsed()
        };
        let (reply, heard) = future::join(stage.revoke(&stage.a.1, &key), heard).await;
        let answered = started.elapsed();
        eprintln!("the revoker is cut off: refused elsewhere after {heard:.1?}, 202 after {answered:.1?}");
        assert!(heard < SECOND * 5, "one period of the feed, which is a second: {heard:?}");
        until(effective_by(&reply)).await;
        stage.refused(&key).await;
    }
    // The other replica tells Redis.
    let sql = stage.cluster.sql().await;
    eventually("the outbox is worked off", SECOND * 60, async || {
        let open = "select count(*) from cache_outbox where done_at is null";
        (sql.query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_waiting_a_revocation_takes_a_poll() {
    let _alone = alone().await;
    let stage = TwoReplicas::open("on").await;
    let mut wires = [RawClient::open(&stage.a.1).await, RawClient::open(&stage.b.1).await];
    let (mut answered, mut heard) = (Vec::new(), Vec::new());
    for key in stage.keys(40).await {
        stage.warm(&key).await;
        let started = Instant::now();
        let path = format!("/keys/{}?wait=false", key.id);
        RawClient::open(&stage.a.1).await.ask("DELETE", &path, &stage.admin, None).await.expect(204);
        answered.push(started.elapsed());
        for wire in &mut wires {
            while wire.get("/keys/self", &key.text).await.status == 200 {}
        }
        heard.push(started.elapsed());
    }
    let worst = *heard.iter().max().unwrap();
    let ((p50, p99), heard) = (percentiles(answered), percentiles(heard));
    eprintln!(
        "wait=false: answered p50 {p50:.1?} p99 {p99:.1?}; refused everywhere p50 {:.1?}, at most {worst:.1?}",
        heard.0
    );
    assert!(worst < SECOND, "{worst:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_killed_all_the_time_let_nobody_in() {
    let _alone = alone().await;
    let stage = TwoReplicas::open("on").await;
    let keys = stage.keys(40).await;
    let mut complete = 0;
    for key in &keys {
        stage.warm(key).await;
        // That of the questions for news among them.
        let killed = stage.redis.cli(&["client", "kill", "type", "normal", "skipme", "yes"]);
        assert!(killed.trim_end().parse::<u32>().unwrap() > 0, "{killed}");
        let reply = stage.revoke(&stage.b.1, key).await;
        if reply.status == 202 {
            until(effective_by(&reply)).await;
        } else {
            reply.expect(204);
            complete += 1;
        }
        stage.refused(key).await;
    }
    assert!(complete > keys.len() / 2, "{complete}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_emptied_forgets_who_listens_and_still_nobody_is_let_in() {
    let _alone = alone().await;
    let stage = TwoReplicas::open("on").await;
    let old = stage.key().await;
    stage.warm(&old).await;
    stage.revoke(&stage.a.1, &old).await.expect(204);
    let mut took = Vec::new();
    for key in stage.keys(15).await {
        stage.warm(&key).await;
        assert_eq!(stage.redis.cli(&["flushall"]).trim_end(), "OK");
        let started = Instant::now();
        stage.revoke(&stage.b.1, &key).await.expect(204);
        took.push(started.elapsed());
        stage.refused(&key).await;
        stage.refused(&old).await;
    }
    eprintln!("emptied: revoked after p50 {:.1?}", percentiles(took).0);
    assert!(metric(&stage.a.1, "identity_l1_epoch_bumps_total", &[]).await >= 15.0, "each one is noticed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_busy_for_two_seconds_lets_nobody_in() {
    let _alone = alone().await;
    let stage = TwoReplicas::open("on").await;
    for _ in 0..2 {
        let (kept, key) = (stage.key().await, stage.key().await);
        stage.warm(&key).await;
        stage.warm(&kept).await;
        // As DEBUG SLEEP, which a server refuses unless it was started for it.
        let script = "local t=redis.call('TIME')[1] while redis.call('TIME')[1]-t<2 do end return 'awake'";
        let socket = stage.cluster.redis_url.strip_prefix("unix:").unwrap();
        let mut busy = tokio::process::Command::new("redis-cli");
        let busy = busy.args(["-s", socket, "eval", script, "0"]).output();
        let revoked = async {
            stage.asks(&stage.a.1, &kept).await.expect(200);
            let reply = stage.revoke(&stage.b.1, &key).await;
            if reply.status == 202 {
                until(effective_by(&reply)).await;
            } else {
                reply.expect(204);
            }
            stage.refused(&key).await;
            stage.asks(&stage.a.1, &kept).await.expect(200);
        };
        let (said, ()) = future::join(busy, revoked).await;
        let said = String::from_utf8(said.unwrap().stdout).unwrap();
        assert_eq!(said.trim_end(), "awake");
    }
}
