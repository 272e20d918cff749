//! Postgres is away: keys that are cached go on for a while, marked as stale; the others are told to come again. So is
//! everybody where no news comes at all, though Redis answers.

use std::time::{Duration, Instant};

use futures_util::future;
use nix::sys::signal::Signal;

use super::{
    alone,
    line::{Line, Mode},
    metric,
    minted::Minted,
    stage::TwoReplicas,
    wire::{RawClient, Reply},
};
use crate::support::eventually;

const SECOND: Duration = Duration::from_secs(1);

#[track_caller]
fn come_again(reply: &Reply) {
    let body = reply.body();
    assert_eq!((reply.status, body["code"].as_str()), (503, Some("unavailable")), "{body}");
    assert!(reply.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
}

/// Two replicas; `a` asks Postgres through a line of its own.
async fn with_a_line(l1: &str) -> (TwoReplicas, Line) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let runtime = tokio::runtime::Handle::current();
    let stage = TwoReplicas::with(l1, |cluster| {
        let url = cluster.database_url.clone();
        let (line, url) = tokio::task::block_in_place(|| runtime.block_on(Line::to_postgres(&url)));
        cluster.set("DATABASE_URL", url);
        sender.send(line).unwrap();
    })
    .await;
    (stage, receiver.recv().unwrap())
}

/// Waits until hits are marked as stale, and are let in up to then.
async fn stale(wire: &mut RawClient, key: &Minted) {
    eventually("hits marked as stale", SECOND * 60, async || {
        let reply = wire.get("/keys/self", &key.text).await.expect(200);
        (reply.header("x-identity-stale") == Some("1")).then_some(())
    })
    .await;
}

/// A key that the process asked here has never met, and Redis has.
async fn unmet(stage: &TwoReplicas) -> Minted {
    let key = stage.key().await;
    // The first time it may be a look-up whose fill is too late.
    stage.answers_from(&stage.b.1, "pg", &key).await;
    eventually("the key in Redis", SECOND * 30, async || {
        stage.asks(&stage.b.1, &key).await.expect(200);
        (stage.redis.cli(&["--raw", "getrange", &key.redis_key, "0", "0"]).trim_end() == "V").then_some(())
    })
    .await;
    key
}

/// Silences what is left, and waits until the process asked refuses to guess; up to then it lets the key in. It meets the
/// key just before, so that what it keeps of it would go on for 30 s.
async fn refusal(base: &str, wire: &mut RawClient, key: &Minted, silence: impl FnOnce()) {
    let from_redis = async || metric(base, "identity_verify_total", &[("tier", "redis"), ("result", "accepted")]).await;
    let (met, before) = (Instant::now(), from_redis().await);
    wire.get("/keys/self", &key.text).await.expect(200);
    assert!(from_redis().await > before, "not from Redis: nothing is kept then");
    silence();
    let silent = Instant::now();
    eventually("refusal to guess", SECOND * 15, async || {
        let reply = wire.get("/keys/self", &key.text).await;
        assert!(reply.status == 200 || reply.status == 503, "{}", reply.status);
        (reply.status == 503).then_some(())
    })
    .await;
    eprintln!("neither channel: 503 after {:.1?}", silent.elapsed());
    assert!(met.elapsed() < SECOND * 25, "what is kept may have ended by itself: {:?}", met.elapsed());
}

/// Waits until the key is let in, as `stale` or not; up to then it is never called wrong.
async fn let_in(wire: &mut RawClient, key: &Minted, stale: Option<&str>) {
    eventually(&format!("let in, {stale:?}"), SECOND * 60, async || {
        let reply = wire.get("/keys/self", &key.text).await;
        assert_ne!(reply.status, 401);
        (reply.status == 200 && reply.header("x-identity-stale") == stale).then_some(())
    })
    .await;
}

/// `away`: how the line to Postgres fails.
async fn postgres_is_away(l1: &str, away: Mode) {
    let (stage, line) = with_a_line(l1).await;
    let base = &stage.a.1;
    let (hot, cold, revoked) = (stage.key().await, stage.key().await, stage.key().await);
    stage.warm(&hot).await;
    stage.warm(&revoked).await;
    let unmet = unmet(&stage).await;
    let mut wire = RawClient::open(base).await;
    wire.get("/keys/self", &stage.admin).await.expect(200);
    let reply = wire.get("/keys/self", &hot.text).await.expect(200);
    assert_eq!(reply.header("x-identity-stale"), None);

    line.set(away);
    let began = Instant::now();
    stage.revoke(&stage.b.1, &revoked).await.expect(204);
    // Redis tells this replica, though Postgres cannot.
    stage.asks(base, &revoked).await.expect(401);
    come_again(&stage.asks(base, &cold).await);
    come_again(&stage.revoke(base, &hot).await);
    stale(&mut wire, &hot).await;
    let stale_after = began.elapsed();
    eprintln!("Postgres is away ({away:?}), L1 {l1}: stale after {stale_after:.1?}");
    assert!(stale_after > SECOND * 8, "ten seconds after the last good feed: {stale_after:?}");
    come_again(&stage.asks(base, &cold).await);
    stage.asks(base, &revoked).await.expect(401);

    // Neither channel: what is kept is not believed any more.
    refusal(base, &mut wire, &unmet, || stage.redis.signal(Signal::SIGSTOP)).await;
    for _ in 0..3 {
        come_again(&wire.get("/keys/self", &unmet.text).await);
        come_again(&wire.get("/keys/self", &hot.text).await);
        come_again(&wire.get("/keys/self", &revoked.text).await);
    }

    line.set(Mode::Open);
    stage.redis.signal(Signal::SIGCONT);
    let_in(&mut wire, &hot, None).await;
    eventually("the key that was never seen", SECOND * 60, async || {
        let status = stage.asks(base, &cold).await.status;
        assert_ne!(status, 401);
        (status == 200).then_some(())
    })
    .await;
    stage.refused(&revoked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_postgres_cached_keys_go_on_marked_as_stale_and_without_both_nobody_is_let_in() {
    let _alone = alone().await;
    future::join(postgres_is_away("on", Mode::Cut), postgres_is_away("off", Mode::Held)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_news_from_either_channel_nobody_is_let_in_though_redis_answers() {
    let _alone = alone().await;
    let (stage, line) = with_a_line("on").await;
    let (base, key) = (&stage.a.1, stage.key().await);
    let (gone, unmet, mut wire) = (stage.key().await, unmet(&stage).await, RawClient::open(base).await);
    stage.warm(&key).await;
    stage.warm(&gone).await;
    let log = format!("app:{}:ak:log", stage.cluster.id().await);
    // The question for news is an error then; keys are answered all the same.
    let hush = || assert_eq!(stage.redis.cli(&["SET", &log, "no log"]).trim(), "OK");
    let tell = || assert_eq!(stage.redis.cli(&["DEL", &log]).trim(), "1");

    // The feed alone: what the process keeps is not used, what Redis has is.
    hush();
    stage.answers_from(base, "redis", &key).await;
    tell();
    stage.answers_from(base, "l1", &key).await;

    // InvalidationBatch alone.
    line.set(Mode::Cut);
    stale(&mut wire, &key).await;

    // Neither. Here is what a cache would be wrong about: a key revoked while nobody can tell this replica.
    let revoke = "update api_key set revoked_at = now(), ver = ver + 1, changed_at = now() where id = $1";
    assert_eq!(stage.cluster.sql().await.execute(revoke, &[&gone.id]).await.unwrap(), 1);
    refusal(base, &mut wire, &unmet, hush).await;
    for _ in 0..3 {
        come_again(&wire.get("/keys/self", &unmet.text).await);
        come_again(&wire.get("/keys/self", &key.text).await);
        come_again(&wire.get("/keys/self", &gone.text).await);
    }
    // It is not for want of an answer: the other replica, which has the feed, takes the same value from the same Redis.
    stage.answers_from(&stage.b.1, "redis", &key).await;
    assert_eq!(wire.get("/keys/self", &key.text).await.status, 503);

    // One channel is enough again, and with both all is as before.
    tell();
    let_in(&mut wire, &key, Some("1")).await;
    line.set(Mode::Open);
    let_in(&mut wire, &key, None).await;
    stage.refused(&gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_that_postgres_lost_is_still_in_redis() {
    let _alone = alone().await;
    let stage = TwoReplicas::open("on").await;
    let key = stage.key().await;
    stage.warm(&key).await;
    stage.revoke(&stage.a.1, &key).await.expect(204);
    // As after a failover to a standby that had not heard of it.
    let lost =
        "update api_key set revoked_at = null, revoked_by = null, ver = 1, changed_at = '-infinity' where id = $1";
    assert_eq!(stage.cluster.sql().await.execute(lost, &[&key.id]).await.unwrap(), 1);
    stage.refused(&key).await;
}
