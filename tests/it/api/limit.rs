//! Rate limits: one limit over all replicas, each replica alone while Redis is down, and limits of single keys.

use std::time::{Duration, Instant};

use futures_util::future;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use super::problem::problem;
use crate::support::{Answer, Client, Cluster, client::send, cluster::base_url, poll_until, redis_server::RedisServer};

const RPS: f64 = 20.0;
const BURST: u32 = 30;

struct Request {
    sent: Instant,
    answered: Instant,
    accepted: bool,
}

/// Sends requests without a pause from two tasks for each of the clients.
async fn send_repeatedly(clients: &[&Client], time: Duration) -> Vec<Request> {
    let end = Instant::now() + time;
    let task = |client: Client| async move {
        let mut all = Vec::new();
        while Instant::now() < end {
            let sent = Instant::now();
            let status = client.get("/keys/self").await.status;
            assert!(status == 200 || status == 429, "{status}");
            all.push(Request { sent, answered: Instant::now(), accepted: status == 200 });
            // Often enough to miss nothing, and not so often that the machine is the limit.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        all
    };
    let tasks = clients.iter().flat_map(|client| [task((*client).clone()), task((*client).clone())]);
    future::join_all(tasks).await.into_iter().flatten().collect()
}

fn accepted(requests: &[Request]) -> usize {
    requests.iter().filter(|one| one.accepted).count()
}

/// Returns how many of these requests one limit accepts: the burst, and one more for each interval that the rate allows
/// between the first request and the last. When those were counted is known up to the time that they took.
fn allowed(requests: &[Request]) -> (f64, f64) {
    let good = || requests.iter().filter(|one| one.accepted);
    let first = (good().map(|one| one.sent).min().unwrap(), good().map(|one| one.answered).min().unwrap());
    let last_refused = requests.iter().filter(|one| !one.accepted).map(|one| one.sent).max().unwrap();
    let last_accepted = good().map(|one| one.answered).max().unwrap();
    let burst = f64::from(BURST);
    let least = burst - 1.0 + (last_refused - first.1).as_secs_f64() * RPS;
    (least, burst + (last_accepted - first.0).as_secs_f64() * RPS)
}

#[allow(clippy::cast_precision_loss, reason = "hundreds")]
#[track_caller]
fn exactly(what: &str, requests: &[Request]) {
    let ((least, most), accepted) = (allowed(requests), accepted(requests));
    eprintln!("{what}: {accepted} of {} requests accepted; one limit: {least:.1} to {most:.1}", requests.len());
    assert!((least..=most).contains(&(accepted as f64)), "{what}");
    assert!(requests.len() > accepted + BURST as usize, "too slow to meet the limit");
}

struct Replicas {
    a: Client,
    b: Client,
    cluster: Cluster,
    _apis: [crate::support::App; 2],
}

impl Replicas {
    async fn start(redis_url: Option<String>) -> Self {
        let mut cluster = Cluster::simulated().await;
        if let Some(url) = redis_url {
            cluster.redis_url = url;
        }
        cluster.set("RATE_LIMIT_RPS", RPS).set("RATE_LIMIT_BURST", BURST).set("RUST_LOG", "warn,app::startup=info");
        let (api, a) = cluster.serve();
        let other = cluster.spawn("serve");
        let b = Client::new(&base_url(&other), &a.key);
        Self { a, b, cluster, _apis: [api, other] }
    }

    /// Creates a key that no replica has counted yet.
    fn fresh(&self) -> (Client, Client) {
        let key = self.cluster.key("acme", "instances:read");
        (self.a.with_key(&key), self.b.with_key(&key))
    }

    /// Waits until Redis counts for both replicas.
    async fn count_together(&self) {
        poll_until("one limit for both", Duration::from_secs(60), async || {
            let before = self.counted_alone().await;
            send_repeatedly(&[&self.a, &self.b], Duration::from_millis(300)).await;
            (self.counted_alone().await == before).then_some(())
        })
        .await;
    }

    /// Returns how many requests the replicas counted without Redis.
    async fn counted_alone(&self) -> u64 {
        alone(&self.a).await + alone(&self.b).await
    }
}

/// Returns how many requests a replica counted without Redis.
async fn alone(client: &Client) -> u64 {
    let text = send(client.anonymous(Method::GET, "/metrics")).await.expect(200).text;
    let line = text.lines().find_map(|line| line.strip_prefix("rate_limit_local_total "));
    line.map_or(0, |n| n.trim().parse().unwrap())
}

/// Results of requests to one replica: those that Redis counted, and the number that the replica counted alone.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    accepted: u32,
    refused: u32,
    alone: u64,
}

/// Sends requests one after the other until Redis has refused as many as it may accept at once. On a machine that
/// stands still for 50 ms a replica counts alone for a while, and its metric shows it: those responses are not part of
/// this test.
async fn until_refused(client: &Client) -> Counted {
    let (mut counted, before) = (Counted::default(), alone(client).await);
    let asking = async {
        while counted.refused < BURST {
            let status = client.get("/keys/self").await.status;
            let alone = alone(client).await - before;
            let by_redis = alone == counted.alone;
            counted.alone = alone;
            match (status, by_redis) {
                (200, true) => counted.accepted += 1,
                (429, true) => counted.refused += 1,
                (200 | 429, false) => {}
                (status, _) => panic!("{status}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asking).await.expect("redis counts");
    counted
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_share_one_limit() {
    let replicas = Replicas::start(None).await;
    // The rate is so low that time plays no part: one more in a thousand seconds.
    let limits = json!({"rps": 0.001, "burst": BURST});
    let (a, _) = made(&replicas.a, json!({"name": "k", "scopes": ["keys:read"], "limits": limits})).await;
    let b = replicas.b.with_key(&a.key);
    let (a, b) = future::join(until_refused(&a), until_refused(&b)).await;
    eprintln!("two replicas, one limit of {BURST}: {a:?}, {b:?}");

    let accepted = a.accepted + b.accepted;

    assert!(accepted <= BURST, "{accepted}");
    // Redis refused: every request that it accepted before either got that response, or the response came too late and
    // the replica counted alone.
    assert!(u64::from(accepted) + a.alone + b.alone >= u64::from(BURST), "{accepted}");
}

/// The control of the test above, and the behaviour without Redis: each replica applies the limit alone, so that both
/// together accept twice as much. No request is refused, and none waits for a timeout.
#[tokio::test(flavor = "multi_thread")]
async fn each_replica_limits_alone_without_delay_while_redis_is_down() {
    let mut redis = RedisServer::start();
    let replicas = Replicas::start(Some(redis.url())).await;
    for hung in [true, false] {
        let (a, b) = replicas.fresh();
        if hung {
            redis.signal(Signal::SIGSTOP);
        } else {
            redis.kill();
        }
        // The first few requests wait until the breaker opens.
        send_repeatedly(&[&replicas.a, &replicas.b], Duration::from_millis(500)).await;
        let what = if hung { "redis hangs" } else { "redis is gone" };
        let both = future::join(
            send_repeatedly(&[&a], Duration::from_secs(3)),
            send_repeatedly(&[&b], Duration::from_secs(3)),
        )
        .await;
        for requests in [&both.0, &both.1] {
            exactly(what, requests);
        }
        let all: Vec<Request> = both.0.into_iter().chain(both.1).collect();
        #[allow(clippy::cast_precision_loss, reason = "hundreds")]
        let sum = accepted(&all) as f64;
        assert!(sum > 1.7 * allowed(&all).1, "{what}: not about twice one limit: {sum}");
        let mut took: Vec<Duration> = all.iter().map(|one| one.answered - one.sent).collect();
        took.sort_unstable();
        let (middle, slow, slowest) = (took[took.len() / 2], took[took.len() * 95 / 100], took[took.len() - 1]);
        eprintln!("{what}: p50 {middle:.1?}, p95 {slow:.1?}, slowest {slowest:.1?}");
        // A request that tries a Redis that is down waits 50 ms.
        assert!(middle < Duration::from_millis(40), "{what}");

        if hung {
            redis.signal(Signal::SIGCONT);
        } else {
            redis.restart();
        }
        replicas.count_together().await;
    }
}

#[track_caller]
fn no_limit(answer: &Answer) {
    let limit_headers = answer.headers.keys().filter(|name| name.as_str().starts_with("ratelimit")).count();
    assert_eq!((answer.status, limit_headers), (200, 0), "{:?}", answer.headers);
}

/// Waits until Redis counts in time: a replica that has just started may count its first requests alone, and only the
/// count in Redis is exact.
async fn redis_counts(admin: &Client) {
    let limits = json!({"rps": 100, "burst": 100});
    let (key, _) = made(admin, json!({"name": "first", "scopes": ["keys:read"], "limits": limits})).await;
    poll_until("Redis that counts", Duration::from_secs(60), async || {
        let before = alone(admin).await;
        for _ in 0..8 {
            key.get("/keys/self").await.expect(200);
        }
        (alone(admin).await == before).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limited_request_gets_retry_after_and_is_served_then() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("RATE_LIMIT_RPS", 0.5).set("RATE_LIMIT_BURST", 2);
    let (_api, client) = cluster.serve();

    redis_counts(&client).await;
    let client = client.with_key(&cluster.key("acme", "admin"));
    let policy = "\"key\";q=2;w=4";
    let first = client.get("/keys/self").await.expect(200);
    let limit_headers = |answer: &Answer| {
        ["ratelimit-limit", "ratelimit-remaining", "ratelimit-policy"].map(|name| answer.header(name).to_owned())
    };

    assert_eq!(limit_headers(&first), ["2", "1", policy]);

    // A request that is refused for another reason counts, and its headers show it.
    let second = client.get("/nope").await;
    problem(&second, "not_found");
    assert_eq!(limit_headers(&second), ["2", "0", policy]);

    let refused = client.get("/keys/self").await;
    problem(&refused, "rate_limited");
    assert_eq!(limit_headers(&refused), ["2", "0", policy]);

    let seconds = |name: &str| refused.header(name).parse::<u64>().unwrap();
    let (retry, reset) = (seconds("retry-after"), seconds("ratelimit-reset"));
    assert!((1..=2).contains(&retry) && (3..=4).contains(&reset), "{retry} {reset}");
    assert_eq!(refused.header("ratelimit"), format!("\"key\";r=0;t={reset}"));

    // Refused requests cost nothing: the time does not move.
    let at = Instant::now() + Duration::from_secs(retry);
    problem(&client.get("/keys/self").await, "rate_limited");
    tokio::time::sleep_until(at.into()).await;
    client.get("/keys/self").await.expect(200);

    problem(&client.get("/keys/self").await, "rate_limited");
    // A request without the scope is counted as well; one without a key, or to a public path, is not.
    let poor = client.with_key(&cluster.key("acme", "networks:read"));
    for code in ["forbidden", "forbidden", "rate_limited"] {
        problem(&poor.get("/instances").await, code);
    }
    for _ in 0..5 {
        problem(&send(client.anonymous(Method::GET, "/keys/self")).await, "unauthenticated");
        no_limit(&client.get("/health/live").await);
    }
}

async fn made(client: &Client, body: Value) -> (Client, String) {
    let body = client.post("/keys", body).await.expect(201).body;
    (client.with_key(body["key"].as_str().unwrap()), format!("/keys/{}", body["id"].as_str().unwrap()))
}

/// Returns how many requests in a row are accepted, of `most`.
async fn in_a_row(client: &Client, most: usize) -> usize {
    for n in 0..most {
        let answer = client.get("/keys/self").await;
        if answer.status != 200 {
            problem(&answer, "rate_limited");
            return n;
        }
    }
    most
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_have_no_limit_by_default_and_may_have_their_own() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();

    redis_counts(&admin).await;
    for _ in 0..300 {
        no_limit(&admin.get("/keys/self").await);
    }
    let patch = async |path: &str, limits: Value| {
        send(admin.request(Method::PATCH, path).json(&json!({"limits": limits}))).await.expect(200).body
    };
    let limits = json!({"rps": 0.01, "burst": 3});
    let (key, path) = made(&admin, json!({"name": "k", "scopes": ["keys:read"], "limits": limits})).await;

    assert_eq!(admin.get(&path).await.expect(200).body["limits"], limits);
    assert_eq!(in_a_row(&key, 10).await, 3);

    no_limit(&admin.get("/keys/self").await);
    // The limit is in force when the response has arrived.
    assert_eq!(patch(&path, json!(null)).await["limits"], json!(null));

    no_limit(&key.get("/keys/self").await);
    patch(&path, json!({"rps": 0.01, "burst": 8})).await;
    assert_eq!(in_a_row(&key, 20).await, 5, "three of eight are gone");

    // A rotated key keeps the limit.
    let rotated = admin.post(&format!("{path}/rotate"), json!({})).await.expect(201).body;
    let rotated = admin.with_key(rotated["key"].as_str().unwrap());
    assert_eq!(in_a_row(&rotated, 20).await, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_own_limit_overrides_the_general_one() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("RATE_LIMIT_RPS", 0.01).set("RATE_LIMIT_BURST", 20);
    let (_api, admin) = cluster.serve();

    let scopes = json!(["keys:read"]);
    let (free, _) = made(&admin, json!({"name": "k", "scopes": scopes, "limits": {"rps": 0, "burst": 1}})).await;
    let (larger, _) = made(&admin, json!({"name": "k", "scopes": scopes, "limits": {"rps": 0.01, "burst": 25}})).await;

    let (general, _) = made(&admin, json!({"name": "k", "scopes": scopes})).await;

    assert_eq!([in_a_row(&free, 40).await, in_a_row(&larger, 40).await, in_a_row(&general, 40).await], [40, 25, 20]);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_grants_no_laxer_limit_than_its_own() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();

    for (limits, pointer) in [
        (json!({"rps": -1, "burst": 1}), "/limits/rps"),
        (json!({"rps": 1e-9, "burst": 1}), "/limits/rps"),
        (json!({"rps": 1e7, "burst": 1}), "/limits/rps"),
        (json!({"rps": 1, "burst": 0}), "/limits/burst"),
        (json!({"rps": 1, "burst": 1_000_001}), "/limits/burst"),
        (json!({"rps": 1, "burst": -1}), "/limits/burst"),
        (json!({"rps": 1}), "/limits/burst"),
        (json!({"rps": 1, "burst": 1, "more": 1}), "/limits/more"),
        (json!("fast"), "/limits"),
    ] {
        let body = json!({"name": "k", "scopes": ["keys:read"], "limits": limits});
        assert_eq!(problem(&admin.post("/keys", body).await, "validation_failed"), [pointer], "{limits}");
    }
    let own = json!({"rps": 1, "burst": 100});
    let (maker, _) = made(&admin, json!({"name": "m", "scopes": ["keys:read", "keys:write"], "limits": own})).await;
    let (_, lax) = made(&admin, json!({"name": "lax", "scopes": ["keys:read"]})).await;
    let shown = async |path: &str| admin.get(path).await.expect(200).body["limits"].clone();
    let key = |limits: Value| json!({"name": "k", "scopes": ["keys:read"], "limits": limits});
    for limits in [json!({"rps": 2, "burst": 1}), json!({"rps": 1, "burst": 101}), json!({"rps": 0, "burst": 1})] {
        problem(&maker.post("/keys", key(limits.clone())).await, "forbidden");
        let patch = maker.request(Method::PATCH, &lax).json(&json!({"limits": limits}));
        problem(&send(patch).await, "forbidden");
    }
    let lift = maker.request(Method::PATCH, &lax).json(&json!({"limits": null}));
    problem(&send(lift).await, "forbidden");
    problem(&maker.post(&format!("{lax}/rotate"), json!({})).await, "forbidden");
    // A new key has the creator's own limit by default, or a tighter one.
    let (_, path) = made(&maker, json!({"name": "k", "scopes": ["keys:read"]})).await;

    assert_eq!(shown(&path).await, json!({"rps": 1.0, "burst": 100}));

    let (_, path) = made(&maker, key(json!({"rps": 0.5, "burst": 100}))).await;
    assert_eq!(shown(&path).await, json!({"rps": 0.5, "burst": 100}));
    maker.post(&format!("{path}/rotate"), json!({})).await.expect(201);
}
