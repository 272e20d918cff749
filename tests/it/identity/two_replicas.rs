//! Two API replicas on a Redis of their own, for tests that inject faults into Redis or into a replica.

use std::time::{Duration, Instant};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::{
    key_factory::{KeyFactory, TestKey},
    metric,
    raw_client::{RawClient, Reply},
    serve,
};
use crate::support::{App, Cluster, poll_until, proxy::Proxy, redis_server::RedisServer};

pub struct TwoReplicas {
    pub a: (App, String),
    pub b: (App, String),
    pub key_factory: KeyFactory,
    pub admin: String,
    pub tenant: Uuid,
    pub cluster: Cluster,
    pub redis: RedisServer,
}

impl TwoReplicas {
    pub async fn start(l1: &str) -> Self {
        Self::start_with(l1, |_| {}).await
    }

    /// Starts two replicas that reach Postgres through one proxy, which counts round trips.
    pub async fn start_with_proxy(l1: &str) -> (Self, Proxy) {
        let cluster = Cluster::simulated().await;
        let proxy = Proxy::start(&cluster.database_url).await;
        let url = proxy.url.clone();
        let both = |cluster: &mut Cluster| {
            cluster.set("DATABASE_URL", url);
        };
        (Self::on(cluster, l1, both, |_| {}).await, proxy)
    }

    /// Starts two replicas; `change` changes the settings of `a` alone.
    pub async fn start_with(l1: &str, change: impl FnOnce(&mut Cluster)) -> Self {
        Self::on(Cluster::simulated().await, l1, |_| {}, change).await
    }

    async fn on(
        mut cluster: Cluster,
        l1: &str,
        both: impl FnOnce(&mut Cluster),
        change: impl FnOnce(&mut Cluster),
    ) -> Self {
        let redis = RedisServer::start();
        cluster.redis_url = redis.url();
        cluster
            .set("IDENTITY_L1", l1)
            .set("RUST_LOG", "error,app::startup=info,app::core::identity::cache::lookup=debug");
        both(&mut cluster);
        let key_factory = KeyFactory::of(&cluster).await;
        let (admin, tenant) = (cluster.key("acme", "admin"), key_factory.create_tenant("keys").await);
        let b = serve(&cluster);
        change(&mut cluster);
        let a = serve(&cluster);
        Self { a, b, key_factory, admin, tenant, cluster, redis }
    }

    /// Waits until revocations are as fast as usual: a Redis that was empty a second ago may not know all processes,
    /// and revocations wait for that.
    pub async fn wait_until_revocations_are_fast(&self) {
        poll_until("quick revocations", Duration::from_secs(60), async || {
            let (key, started) = (self.create_key().await, Instant::now());
            self.revoke(&self.b.1, &key).await.expect(204);
            (started.elapsed() < Duration::from_millis(500)).then_some(())
        })
        .await;
    }

    pub async fn create_key(&self) -> TestKey {
        self.create_keys(1).await.remove(0)
    }

    pub async fn create_keys(&self, n: usize) -> Vec<TestKey> {
        self.key_factory.create_keys(n, self.tenant, &["keys:read"], None).await
    }

    /// Uses the key at both replicas until their caches have it.
    pub async fn warm(&self, key: &TestKey) {
        for base in [&self.a.1, &self.b.1] {
            let mut client = RawClient::connect(base).await;
            for _ in 0..2 {
                client.get("/keys/self", &key.text).await.expect(200);
            }
        }
    }

    /// Sends one request with the key to a replica.
    pub async fn verify(&self, base: &str, key: &TestKey) -> Reply {
        RawClient::connect(base).await.get("/keys/self", &key.text).await
    }

    #[track_caller]
    pub fn assert_refused(&self, key: &TestKey) -> impl Future<Output = ()> {
        let (a, b, key) = (self.a.1.clone(), self.b.1.clone(), key.text.clone());
        async move {
            for base in [&a, &b] {
                RawClient::connect(base).await.get("/keys/self", &key).await.expect(401);
            }
        }
    }

    /// Revokes the key through a replica.
    pub async fn revoke(&self, base: &str, key: &TestKey) -> Reply {
        RawClient::connect(base).await.send("DELETE", &format!("/keys/{}", key.id), &self.admin, None).await
    }

    /// Waits until a replica verifies the key from this tier again.
    pub async fn wait_for_answer_from(&self, base: &str, tier: &str, key: &TestKey) {
        let labels = [("tier", tier), ("result", "accepted")];
        let before = metric(base, "identity_verify_total", &labels).await;
        poll_until(&format!("an answer from {tier}"), Duration::from_secs(60), async || {
            self.verify(base, key).await.expect(200);
            (metric(base, "identity_verify_total", &labels).await > before).then_some(())
        })
        .await;
    }

    /// Sends requests one after the other, asserts the status of each, and returns how long each took.
    pub async fn measure(&self, base: &str, key: &TestKey, n: usize, expect: u16) -> Vec<Duration> {
        let (mut client, mut all) = (RawClient::connect(base).await, Vec::new());
        for _ in 0..n {
            let started = Instant::now();
            client.get("/keys/self", &key.text).await.expect(expect);
            all.push(started.elapsed());
        }
        all
    }
}

/// Returns when a pending change takes effect, as its response says.
#[track_caller]
pub fn effective_by(reply: &Reply) -> OffsetDateTime {
    let body = reply.body();
    assert_eq!((reply.status, body["propagation"].as_str()), (202, Some("pending")), "{body}");
    OffsetDateTime::parse(body["effective_by"].as_str().unwrap(), &Rfc3339).unwrap()
}

/// Sleeps until that moment.
pub async fn sleep_until(moment: OffsetDateTime) {
    if let Ok(rest) = Duration::try_from(moment - OffsetDateTime::now_utc()) {
        tokio::time::sleep(rest).await;
    }
}
