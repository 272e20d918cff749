//! One replica without the cache beside others with it: what the one revokes or changes, the others apply.

use serde_json::json;

use super::{
    raw_client::RawClient,
    serial,
    two_replicas::{TwoReplicas, effective_by, sleep_until},
};
use nix::sys::signal::Signal;

async fn mixed(l1: &str) {
    // `a` has no cache, `b` has one.
    let replicas = TwoReplicas::start_with(l1, |cluster| {
        cluster.set("IDENTITY_CACHE", "off");
    })
    .await;
    replicas.wait_until_revocations_are_fast().await;
    for key in &replicas.create_keys(20).await {
        replicas.warm(key).await;
        let kind = || replicas.redis.cli(&["getrange", &key.redis_key, "0", "0"]);
        assert_eq!(kind().trim_end(), "V", "`b` has it in Redis");
        replicas.revoke(&replicas.a.1, key).await.expect(204);
        // Applied at once: without the message `b` would read it from the feed within a second.
        replicas.verify(&replicas.b.1, key).await.expect(401);
        replicas.verify(&replicas.a.1, key).await.expect(401);
        assert_eq!(kind().trim_end(), "T");
    }
    for key in &replicas.create_keys(20).await {
        replicas.warm(key).await;
        let (path, scopes) = (format!("/keys/{}", key.id), json!({"scopes": ["networks:read"]}));
        RawClient::connect(&replicas.a.1).await.send("PATCH", &path, &replicas.admin, Some(&scopes)).await.expect(200);
        let shown = replicas.verify(&replicas.b.1, key).await.expect(200).body();
        assert_eq!(shown["scopes"], json!(["networks:read"]));
        RawClient::connect(&replicas.a.1)
            .await
            .send("POST", &format!("{path}/rotate"), &replicas.admin, Some(&json!({})))
            .await
            .expect(201);
        replicas.verify(&replicas.b.1, key).await.expect(401);
    }
    // While Redis hangs, the revocation is reported as pending.
    let key = replicas.create_key().await;
    replicas.warm(&key).await;
    replicas.redis.signal(Signal::SIGSTOP);
    let pending = replicas.revoke(&replicas.a.1, &key).await;
    sleep_until(effective_by(&pending)).await;
    replicas.assert_refused(&key).await;
    replicas.redis.signal(Signal::SIGCONT);
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_without_cache_propagates_its_revocations() {
    let _serial = serial().await;
    mixed("on").await;
    mixed("off").await;
}
