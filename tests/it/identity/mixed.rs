//! One replica without the cache, others with it: what the one takes away, the others do not let in.

use serde_json::json;

use super::{
    alone,
    stage::{TwoReplicas, effective_by, until},
    wire::RawClient,
};
use nix::sys::signal::Signal;

async fn mixed(l1: &str) {
    // `a` keeps no keys, `b` does.
    let stage = TwoReplicas::with(l1, |cluster| {
        cluster.set("IDENTITY_CACHE", "off");
    })
    .await;
    stage.settled().await;
    for key in &stage.keys(20).await {
        stage.warm(key).await;
        let kind = || stage.redis.cli(&["getrange", &key.redis_key, "0", "0"]);
        assert_eq!(kind().trim_end(), "V", "`b` has it in Redis");
        stage.revoke(&stage.a.1, key).await.expect(204);
        // At once: the feed would tell `b` within a second by itself.
        stage.asks(&stage.b.1, key).await.expect(401);
        stage.asks(&stage.a.1, key).await.expect(401);
        assert_eq!(kind().trim_end(), "T");
    }
    for key in &stage.keys(20).await {
        stage.warm(key).await;
        let (path, scopes) = (format!("/keys/{}", key.id), json!({"scopes": ["networks:read"]}));
        RawClient::open(&stage.a.1).await.ask("PATCH", &path, &stage.admin, Some(&scopes)).await.expect(200);
        let shown = stage.asks(&stage.b.1, key).await.expect(200).body();
        assert_eq!(shown["scopes"], json!(["networks:read"]));
        RawClient::open(&stage.a.1)
            .await
            .ask("POST", &format!("{path}/rotate"), &stage.admin, Some(&json!({})))
            .await
            .expect(201);
        stage.asks(&stage.b.1, key).await.expect(401);
    }
    // It promises nothing that it cannot tell.
    let key = stage.key().await;
    stage.warm(&key).await;
    stage.redis.signal(Signal::SIGSTOP);
    let pending = stage.revoke(&stage.a.1, &key).await;
    until(effective_by(&pending)).await;
    stage.refused(&key).await;
    stage.redis.signal(Signal::SIGCONT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_without_the_cache_tells_those_that_have_it_of_what_it_revokes() {
    let _alone = alone().await;
    mixed("on").await;
    mixed("off").await;
}
