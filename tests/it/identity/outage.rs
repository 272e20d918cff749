//! Postgres is unavailable: cached keys are accepted for a while, marked as stale, and others get 503. So does every
//! key when neither channel delivers invalidations, even though Redis responds.

use std::time::{Duration, Instant};

use futures_util::future;
use nix::sys::signal::Signal;

use super::{
    fault_proxy::{FaultProxy, Mode},
    key_factory::TestKey,
    metric,
    raw_client::{RawClient, Reply},
    serial,
    two_replicas::TwoReplicas,
};
use crate::support::poll_until;

const SECOND: Duration = Duration::from_secs(1);

#[track_caller]
fn assert_unavailable(reply: &Reply) {
    let body = reply.body();
    assert_eq!((reply.status, body["code"].as_str()), (503, Some("unavailable")), "{body}");
    assert!(reply.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
}

/// Starts two replicas; `a` reaches Postgres through a proxy of its own.
async fn with_a_proxy(l1: &str) -> (TwoReplicas, FaultProxy) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let runtime = tokio::runtime::Handle::current();
    let replicas = TwoReplicas::start_with(l1, |cluster| {
        let url = cluster.database_url.clone();
        let (proxy, url) = tokio::task::block_in_place(|| runtime.block_on(FaultProxy::to_postgres(&url)));
        cluster.set("DATABASE_URL", url);
        sender.send(proxy).unwrap();
    })
    .await;
    (replicas, receiver.recv().unwrap())
}

/// Waits until responses are marked as stale; all of them must be 200 up to then.
async fn wait_for_stale(client: &mut RawClient, key: &TestKey) {
    poll_until("hits marked as stale", SECOND * 60, async || {
        let reply = client.get("/keys/self", &key.text).await.expect(200);
        (reply.header("x-identity-stale") == Some("1")).then_some(())
    })
    .await;
}

/// Creates a key that replica `a` has never seen and that is in Redis.
async fn create_unseen_key(replicas: &TwoReplicas) -> TestKey {
    let key = replicas.create_key().await;
    // The fill of the first look-up may come too late.
    replicas.wait_for_answer_from(&replicas.b.1, "pg", &key).await;
    poll_until("the key in Redis", SECOND * 30, async || {
        replicas.verify(&replicas.b.1, &key).await.expect(200);
        (replicas.redis.cli(&["--raw", "getrange", &key.redis_key, "0", "0"]).trim_end() == "V").then_some(())
    })
    .await;
    key
}

/// Runs `silence`, which stops the remaining channel, and waits until the process answers 503; up to then it must
/// accept the key. The process sees the key just before, so that its own cache entry would last for 30 s.
async fn wait_for_503(base: &str, client: &mut RawClient, key: &TestKey, silence: impl FnOnce()) {
    let from_redis = async || metric(base, "identity_verify_total", &[("tier", "redis"), ("result", "accepted")]).await;
    let (met, before) = (Instant::now(), from_redis().await);
    client.get("/keys/self", &key.text).await.expect(200);
    assert!(from_redis().await > before, "not from Redis: nothing is kept then");
    silence();
    let silent = Instant::now();
    poll_until("a 503", SECOND * 15, async || {
        let reply = client.get("/keys/self", &key.text).await;
        assert!(reply.status == 200 || reply.status == 503, "{}", reply.status);
        (reply.status == 503).then_some(())
    })
    .await;
    eprintln!("neither channel: 503 after {:.1?}", silent.elapsed());
    assert!(met.elapsed() < SECOND * 25, "what is kept may have ended by itself: {:?}", met.elapsed());
}

/// Waits until the key is accepted with this `stale` mark; up to then it must not get 401.
async fn wait_until_accepted(client: &mut RawClient, key: &TestKey, stale: Option<&str>) {
    poll_until(&format!("accepted, {stale:?}"), SECOND * 60, async || {
        let reply = client.get("/keys/self", &key.text).await;
        assert_ne!(reply.status, 401);
        (reply.status == 200 && reply.header("x-identity-stale") == stale).then_some(())
    })
    .await;
}

/// Runs the outage; `away` is how the proxy to Postgres fails.
async fn postgres_is_away(l1: &str, away: Mode) {
    let (replicas, proxy) = with_a_proxy(l1).await;
    let base = &replicas.a.1;
    let (hot, cold, revoked) = (replicas.create_key().await, replicas.create_key().await, replicas.create_key().await);
    replicas.warm(&hot).await;
    replicas.warm(&revoked).await;
    let unseen = create_unseen_key(&replicas).await;
    let mut client = RawClient::connect(base).await;
    client.get("/keys/self", &replicas.admin).await.expect(200);
    let reply = client.get("/keys/self", &hot.text).await.expect(200);
    assert_eq!(reply.header("x-identity-stale"), None);

    proxy.set(away);
    let began = Instant::now();
    replicas.revoke(&replicas.b.1, &revoked).await.expect(204);
    // The replica gets the revocation from Redis, though not from Postgres.
    replicas.verify(base, &revoked).await.expect(401);
    assert_unavailable(&replicas.verify(base, &cold).await);
    assert_unavailable(&replicas.revoke(base, &hot).await);
    wait_for_stale(&mut client, &hot).await;
    let stale_after = began.elapsed();
    eprintln!("Postgres is away ({away:?}), L1 {l1}: stale after {stale_after:.1?}");
    assert!(stale_after > SECOND * 8, "ten seconds after the last good feed: {stale_after:?}");
    assert_unavailable(&replicas.verify(base, &cold).await);
    replicas.verify(base, &revoked).await.expect(401);

    // Without both channels the process does not use its cached keys any more.
    wait_for_503(base, &mut client, &unseen, || replicas.redis.signal(Signal::SIGSTOP)).await;
    for _ in 0..3 {
        assert_unavailable(&client.get("/keys/self", &unseen.text).await);
        assert_unavailable(&client.get("/keys/self", &hot.text).await);
        assert_unavailable(&client.get("/keys/self", &revoked.text).await);
    }

    proxy.set(Mode::Open);
    replicas.redis.signal(Signal::SIGCONT);
    wait_until_accepted(&mut client, &hot, None).await;
    poll_until("the key that was never seen", SECOND * 60, async || {
        let status = replicas.verify(base, &cold).await.status;
        assert_ne!(status, 401);
        (status == 200).then_some(())
    })
    .await;
    replicas.assert_refused(&revoked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outage_serves_stale_cached_keys_and_503_without_redis_too() {
    let _serial = serial().await;
    future::join(postgres_is_away("on", Mode::Cut), postgres_is_away("off", Mode::Stalled)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_invalidations_every_key_gets_503() {
    let _serial = serial().await;
    let (replicas, proxy) = with_a_proxy("on").await;
    let (base, key) = (&replicas.a.1, replicas.create_key().await);
    let (gone, unseen, mut client) =
        (replicas.create_key().await, create_unseen_key(&replicas).await, RawClient::connect(base).await);
    replicas.warm(&key).await;
    replicas.warm(&gone).await;
    let log = format!("app:{}:ak:log", replicas.cluster.id().await);
    // The poll for invalidations gets an error then, while look-ups of keys still work.
    let break_log = || assert_eq!(replicas.redis.cli(&["SET", &log, "no log"]).trim(), "OK");
    let restore_log = || assert_eq!(replicas.redis.cli(&["DEL", &log]).trim(), "1");

    // The feed alone: keys in the process are not used, those in Redis are.
    break_log();
    replicas.wait_for_answer_from(base, "redis", &key).await;
    restore_log();
    replicas.wait_for_answer_from(base, "l1", &key).await;

    // The invalidation log alone.
    proxy.set(Mode::Cut);
    wait_for_stale(&mut client, &key).await;

    // Neither channel. A cache would be wrong about a key that is revoked while this replica gets no invalidations.
    let revoke = "update api_key set revoked_at = now(), ver = ver + 1, changed_at = now() where id = $1";
    assert_eq!(replicas.cluster.sql().await.execute(revoke, &[&gone.id]).await.unwrap(), 1);
    wait_for_503(base, &mut client, &unseen, break_log).await;
    for _ in 0..3 {
        assert_unavailable(&client.get("/keys/self", &unseen.text).await);
        assert_unavailable(&client.get("/keys/self", &key.text).await);
        assert_unavailable(&client.get("/keys/self", &gone.text).await);
    }
    // Redis does respond: the other replica, which has the feed, reads the same value from it.
    replicas.wait_for_answer_from(&replicas.b.1, "redis", &key).await;
    assert_eq!(client.get("/keys/self", &key.text).await.status, 503);

    // One channel is enough again, and with both nothing is marked as stale.
    restore_log();
    wait_until_accepted(&mut client, &key, Some("1")).await;
    proxy.set(Mode::Open);
    wait_until_accepted(&mut client, &key, None).await;
    replicas.assert_refused(&gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_lost_by_postgres_is_kept_in_redis() {
    let _serial = serial().await;
    let replicas = TwoReplicas::start("on").await;

    let key = replicas.create_key().await;
    replicas.warm(&key).await;
    replicas.revoke(&replicas.a.1, &key).await.expect(204);

    // As after a failover to a standby that did not have the revocation.
    let lost =
        "update api_key set revoked_at = null, revoked_by = null, ver = 1, changed_at = '-infinity' where id = $1";
    assert_eq!(replicas.cluster.sql().await.execute(lost, &[&key.id]).await.unwrap(), 1);
    replicas.assert_refused(&key).await;
}
