//! The cost of a request and of a job: a proxy in front of Postgres counts round trips, and Redis counts commands.

use std::time::{Duration, Instant};

use futures_util::future;
use reqwest::Method;
use serde_json::json;

use crate::support::{Client, Cluster, client::send, poll_until, proxy::Proxy, redis_server::RedisServer};

/// Returns how often Redis has run a command.
fn calls(redis: &RedisServer, command: &str) -> u64 {
    let stats = redis.cli(&["info", "commandstats"]);
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn request_costs_one_statement_and_post_one_notification() {
    let redis = RedisServer::start();
    let mut cluster = Cluster::simulated().await;
    cluster.redis_url = redis.url();
    // The most expensive case: without the cache Postgres checks the key too.
    cluster.set("IDENTITY_CACHE", "off");
    let proxy = Proxy::start(&cluster.database_url).await;
    cluster.database_url = proxy.url.clone();
    // With a lease of an hour no periodic work falls into the measurement.
    cluster.set("APP_LEASE_MS", 3_600_000).set("DB_MAX_CONNS", 2);
    let (_api, client) = cluster.serve();
    let create = async |key: &str| {
        let request =
            client.request(Method::POST, "/instances").json(&json!({"image": "web:1", "ports": [{"container": 80}]}));
        send(request.header("Idempotency-Key", key)).await.instance()
    };
    let unknown = format!("/instances/{}", uuid::Uuid::nil());
    // Statements are prepared once per connection. There are two connections, and concurrent requests use both for all
    // statements.
    for round in 0..6 {
        let once = async |n: usize| {
            let id = create(&format!("warm-{round}-{n}")).await;
            assert_eq!(create(&format!("warm-{round}-{n}")).await, id);
            client.get(&format!("/instances/{id}")).await.expect(200);
            client.delete(&format!("/instances/{id}")).await.expect(202);
        };
        future::join_all((0..8).map(once)).await;
    }
    let cost = async |what: &str, request: &dyn Fn() -> reqwest::RequestBuilder, status: u16| {
        let (trips, notifications) = (proxy.round_trips(), calls(&redis, "rpush"));
        let answer = send(request()).await.expect(status);
        let cost = (proxy.round_trips() - trips, calls(&redis, "rpush") - notifications);
        show(what, cost);
        (answer, cost)
    };
    // This request ends before any statement of its own: what is left is the check of the key.
    let (_, (key_check, none)) = cost("the key check", &|| client.request(Method::GET, "/instances/x"), 404).await;
    assert!(key_check <= 1 && none == 0);

    // One statement accepts the request.
    let body = json!({"image": "web:1", "ports": [{"container": 80}]});
    let post = || client.request(Method::POST, "/instances").json(&body).header("Idempotency-Key", "counted");
    let (answer, post_cost) = cost("POST", &post, 202).await;
    assert_eq!(post_cost, (key_check + 1, 1));
    // The accepting statement finds the record and changes nothing; then one statement reads the record and one the
    // instance.
    let (_, replay_cost) = cost("POST, replayed", &post, 202).await;
    assert_eq!(replay_cost, (key_check + 3, 0));
    let path = format!("/instances/{}", answer.instance());
    // One statement reads the instance.
    let (_, get_cost) = cost("GET", &|| client.request(Method::GET, &path), 200).await;
    assert_eq!(get_cost, (key_check + 1, 0));
    // One statement, and no notification, since no host has the instance.
    let (_, delete_cost) = cost("DELETE", &|| client.request(Method::DELETE, &path), 202).await;
    assert_eq!(delete_cost, (key_check + 1, 0));
    let (_, unknown_cost) = cost("GET, unknown", &|| client.request(Method::GET, &unknown), 404).await;
    assert_eq!(unknown_cost, (key_check + 1, 0));
}

fn show(what: &str, (trips, notifications): (u64, u64)) {
    eprintln!("{what}: {trips} round trips to Postgres, {notifications} notifications");
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_jobs_cost_a_claim_and_a_finish_each() {
    const N: u64 = 20;
    let mut cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let sql = cluster.sql().await;
    let proxy = Proxy::start(&cluster.database_url).await;
    cluster.database_url = proxy.url.clone();
    // Heartbeats, maintenance and checks run at the start and then not for an hour.
    cluster.set("APP_LEASE_MS", 3_600_000).set("APP_RECHECK_MS", 3_600_000).set("APP_ORPHAN_GRACE_MS", 3_600_000);
    cluster.set("WORK_CONCURRENCY", 64).set("DB_MAX_CONNS", 2);
    let _worker = cluster.work();

    let round = async || {
        let (trips, started) = (proxy.round_trips(), Instant::now());
        let create = |_| client.post("/instances", json!({"image": "web:1"}));
        let ids: Vec<String> =
            future::join_all((0..N).map(create)).await.iter().map(|answer| answer.instance()).collect();
        // On a connection of the test's own, so that the proxy does not count it.
        poll_until("all of them running", Duration::from_secs(60), async || {
            let query = "select count(*) from instances where status = 'running' and id::text = any($1)";
            let running: i64 = sql.query_one(query, &[&ids]).await.unwrap().get(0);
            (running == i64::try_from(N).unwrap()).then_some(())
        })
        .await;
        (proxy.round_trips() - trips, started.elapsed())
    };
    // The first rounds open connections and prepare statements.
    round().await;
    round().await;
    let (trips, took) = round().await;
    let within = |period: f64| (took.as_secs_f64() / period).ceil() as u64;
    // At most one write of steps in 250 ms, and one poll in 1.5 s (2 s less jitter).
    let (steps, polls) = (within(0.25), within(1.5));

    eprintln!("{N} jobs: {trips} round trips in {took:?}, of which steps <= {steps}, polls <= {polls}");
    assert!(trips >= N, "each has its finish");
    assert!(trips <= 2 * N + steps + polls + 2, "{trips} round trips in {took:?}");

    drop::<Client>(client);
}
