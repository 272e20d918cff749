//! A server that accepts no writes in the primary's place: a standby behind the same address, or a read-only primary.
//!
//! Requests get 503, not 500; its rows of keys are not used; after a promotion everything works without a restart.

use std::{sync::Arc, time::Duration};

use app::{
    config::redis::RedisConfig,
    core::{
        db::{Consistency, DbError, DualDb},
        identity::{
            IdentityError, IdentityService, PgIdentity,
            api_key::KeyRing,
            cache::{CachedIdentity, Start, entry::EntrySigner},
        },
    },
};
use serde_json::json;

use super::open;
use crate::{
    identity::key_factory::{KeyFactory, TestKey, secrets},
    support::{
        Answer, App, Client, Cluster, Postgres,
        cluster::{base_url, connect, with_database},
        poll_until,
        proxy::Proxy,
        redis_server::RedisServer,
    },
};

const MINUTE: Duration = Duration::from_secs(60);

/// A cluster whose primary has a standby; its processes reach Postgres through `proxy`.
struct Pair {
    primary: Postgres,
    standby: Postgres,
    /// The URL of the cluster's database on each of them.
    primary_url: String,
    standby_url: String,
    proxy: Proxy,
    redis: RedisServer,
    cluster: Cluster,
    key_factory: KeyFactory,
    tenant: uuid::Uuid,
}

impl Pair {
    async fn start() -> Self {
        let primary = Postgres::primary().await;
        let mut cluster = Cluster::on(&primary).await;
        let standby = Postgres::replica_of(&primary).await;
        let redis = RedisServer::start();
        cluster.redis_url = redis.url();
        let key_factory = KeyFactory::of(&cluster).await;
        let tenant = key_factory.create_tenant("keys").await;
        let primary_url = cluster.database_url.clone();
        let database: tokio_postgres::Config = primary_url.parse().unwrap();
        let standby_url = with_database(&standby.url("postgres"), database.get_dbname().unwrap());
        let proxy = Proxy::start(&primary_url).await;
        Self { primary, standby, primary_url, standby_url, proxy, redis, cluster, key_factory, tenant }
    }

    async fn key(&self) -> TestKey {
        self.key_factory.create_keys(1, self.tenant, &["keys:read"], None).await.remove(0)
    }

    /// Stops the standby's replay, then revokes one key and creates another. Neither is in a cache.
    async fn unknown_to_the_standby(&self) -> (TestKey, TestKey) {
        let revoked = self.key().await;
        self.standby.catch_up_with(&self.primary).await;
        self.standby.sql("postgres").await.batch_execute("select pg_wal_replay_pause()").await.unwrap();
        let revoke = "update api_key set revoked_at = now(), ver = ver + 1, changed_at = now() where id = $1";
        assert_eq!(connect(&self.primary_url).await.execute(revoke, &[&revoked.id]).await.unwrap(), 1);
        (revoked, self.key().await)
    }

    /// Stops the primary and routes its address to the standby, which has replayed everything.
    async fn fail_over(&mut self) {
        let standby = self.standby.sql("postgres").await;
        standby.batch_execute("select pg_wal_replay_resume()").await.unwrap();
        self.standby.catch_up_with(&self.primary).await;
        self.primary.stop();
        assert!(standby.query_one("select pg_promote()", &[]).await.unwrap().get::<_, bool>(0));
    }

    /// Opens a pool of one connection to the primary.
    async fn pool(&self) -> DualDb {
        self.proxy.route_to(&self.primary_url);
        let db = open(&self.proxy.url, None, 1);
        db.read(Consistency::Primary, |c| async move { c.query("select 1", &[]).await }).await.unwrap();
        db
    }
}

#[track_caller]
fn unavailable(answer: &Answer) {
    assert_eq!((answer.status, answer.code()), (503, "unavailable"), "{}", answer.text);
    assert!(answer.header("retry-after").parse::<u32>().unwrap() >= 1);
    for word in ["ostgres", "standby", "primary", "DATABASE_URL"] {
        assert!(!answer.text.contains(word), "{}", answer.text);
    }
}

/// Sends one request of each kind that writes.
async fn writes(client: &Client, instance: &str) -> [Answer; 3] {
    [
        client.post("/instances", json!({"image": "web:1"})).await,
        client.delete(&format!("/instances/{instance}")).await,
        client.post("/keys", json!({"name": "k", "scopes": ["instances:read"]})).await,
    ]
}

/// Returns a client of the worker's own listener.
fn health_of(worker: &App) -> Client {
    let line = worker.line("the worker's health and metrics listen");
    Client::new(&format!("http://{}", line.rsplit("address=").next().unwrap().trim()), "no key")
}

/// Waits until readiness has this status.
async fn readiness(client: &Client, status: u16) -> Answer {
    poll_until(&format!("readiness {status} at {}", client.base), MINUTE, async || {
        let ready = client.get("/health/ready").await;
        (ready.status == status).then_some(ready)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn standby_in_the_primarys_place_is_unavailable_until_promoted() {
    let mut pair = Pair::start().await;
    let beside = pair.cluster.spawn("serve");
    let admin = pair.cluster.key("acme", "admin");
    pair.cluster.database_url = pair.proxy.url.clone();
    let (api, worker) = (pair.cluster.spawn("serve"), pair.cluster.work());
    let client = Client::new(&base_url(&api), &admin);
    let health = health_of(&worker);
    let instance = client.create_running(json!({"image": "web:1"})).await["id"].as_str().unwrap().to_owned();
    readiness(&health, 200).await;
    let (revoked, made) = pair.unknown_to_the_standby().await;

    pair.proxy.route_to(&pair.standby_url);

    // The standby would accept the one key and not find the other.
    for _ in 0..5 {
        unavailable(&client.with_key(&revoked.text).get("/keys/self").await);
        unavailable(&client.with_key(&made.text).get("/keys/self").await);
        for answer in writes(&client, &instance).await {
            unavailable(&answer);
        }
    }
    let ready = readiness(&client, 503).await;
    assert_eq!((&ready.body["status"], &ready.body["primary"]), (&json!("unavailable"), &json!(false)));
    assert_ne!(ready.header("retry-after"), "");
    readiness(&health, 503).await;
    // Neither result was stored in Redis, and the feed of changed keys is not read from the standby.
    let beside_client = Client::new(&base_url(&beside), &made.text);
    beside_client.get("/keys/self").await.expect(200);
    beside_client.with_key(&revoked.text).get("/keys/self").await.expect(401);
    poll_until("keys marked as stale", MINUTE, async || {
        (client.get("/keys/self").await.expect(200).header("x-identity-stale") == "1").then_some(())
    })
    .await;

    drop(beside);
    pair.fail_over().await;
    readiness(&client, 200).await;
    readiness(&health, 200).await;
    client.create_running(json!({"image": "web:1"})).await;
    client.with_key(&revoked.text).get("/keys/self").await.expect(401);
    client.with_key(&made.text).get("/keys/self").await.expect(200);
    client.delete_fully(&instance).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn standby_behind_an_open_connection_answers_for_no_key() {
    let pair = Pair::start().await;
    let (revoked, made) = pair.unknown_to_the_standby().await;
    let secrets = secrets(&pair.cluster);
    for key in [&revoked, &made] {
        let identity = PgIdentity::new(pair.pool().await, Arc::new(KeyRing::new(&secrets)));
        pair.proxy.route_to(&pair.standby_url);

        let result = identity.verify(&key.text).await;

        assert!(matches!(result, Err(IdentityError::Db(DbError::ReadOnly))), "{result:?}");
        // The connection is closed, and none is opened to a standby.
        let again = identity.verify(&key.text).await;
        assert!(matches!(again, Err(IdentityError::Db(DbError::ReadOnly))), "{again:?}");
    }

    // The feed of changed keys is not read from it either.
    let redis = RedisConfig::parse(&pair.redis.url()).unwrap();
    let cluster = pair.cluster.id().await;
    let start = |db| Start {
        db,
        redis: &redis,
        cluster: cluster.into(),
        ring: Arc::new(KeyRing::new(&secrets)),
        signer: EntrySigner::new(vec![vec![1; 32].into()]),
        l1: false,
        primary_reads: 1,
    };
    let feed = CachedIdentity::new(start(pair.pool().await)).unwrap();
    feed.refresh_once().await;
    assert!(!feed.is_stale(), "the primary's answer counts");
    let feed = CachedIdentity::new(start(pair.pool().await)).unwrap();
    pair.proxy.route_to(&pair.standby_url);
    feed.refresh_once().await;
    assert!(feed.is_stale());
}

#[tokio::test(flavor = "multi_thread")]
async fn primary_that_turns_read_only_is_unavailable_while_it_is() {
    let server = Postgres::primary().await;
    let cluster = Cluster::on(&server).await;
    let (api, client) = cluster.serve();
    let worker = cluster.work();
    let health = health_of(&worker);
    let instance = client.create_running(json!({"image": "web:1"})).await["id"].as_str().unwrap().to_owned();
    // The setting applies to open sessions too.
    let sql = server.sql("postgres").await;
    let set = async |value: &str| {
        sql.batch_execute("set default_transaction_read_only = off").await.unwrap();
        sql.batch_execute(&format!("alter system set default_transaction_read_only = {value}")).await.unwrap();
        sql.batch_execute("select pg_reload_conf()").await.unwrap();
    };
    set("on").await;
    readiness(&client, 503).await;
    readiness(&health, 503).await;

    for answer in writes(&client, &instance).await {
        unavailable(&answer);
    }

    assert!(!api.log().contains("answering 500"), "{}", api.log());
    api.line("the primary takes no writes");
    let metrics = client.get("/metrics").await.expect(200).text;
    assert!(metrics.contains("db_conns_discarded_total{cause=\"read_only\"} "), "{metrics}");
    set("off").await;
    readiness(&client, 200).await;
    readiness(&health, 200).await;
    client.create_running(json!({"image": "web:1"})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_write_closes_the_connections_that_are_open() {
    let pair = Pair::start().await;
    let db = pair.pool().await;
    pair.proxy.route_to(&pair.standby_url);

    // The statement was not prepared before the switch, so the standby parses it and refuses it.
    let write = "insert into tenants (id, name) values (gen_random_uuid(), 'x')";
    let result = db.write().await.unwrap().query(write, &[]).await;

    assert!(matches!(result, Err(DbError::ReadOnly)), "{result:?}");
    assert!(matches!(db.write().await.err(), Some(DbError::ReadOnly)), "the connection was lent again");
    assert!(!db.health().await.primary);
}

#[tokio::test(flavor = "multi_thread")]
async fn pool_uses_the_host_that_accepts_writes() {
    let pair = Pair::start().await;
    let database: tokio_postgres::Config = pair.primary_url.parse().unwrap();
    let socket = |url: &str| url.rsplit("host=").next().unwrap().to_owned();
    let (standby, primary) = (socket(&pair.standby_url), socket(&pair.primary_url));
    let name = database.get_dbname().unwrap();
    let db = open(&format!("postgresql://postgres@/{name}?host={standby}&host={primary}"), None, 2);

    let rows = db.read(Consistency::Primary, |c| async move { c.query("select pg_is_in_recovery()", &[]).await }).await;

    assert!(!rows.unwrap()[0].get::<_, bool>(0));
    assert!(db.health().await.primary);
}
