//! What operators use: the OpenAPI document, metrics and health, and how the API stops.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::{problem::problem, raw, waits::somebody_waits};
use crate::support::{Client, Cluster, client::send, poll_until};

#[tokio::test(flavor = "multi_thread")]
async fn openapi_and_metrics_are_complete_and_hold_no_ids_or_secrets() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let document = send(client.anonymous(Method::GET, "/openapi.json")).await.expect(200);
    assert_eq!(document.header("content-type"), "application/json");
    assert!(document.body["openapi"].as_str().unwrap().starts_with("3.1."), "{}", document.body["openapi"]);
    assert!(document.body["info"]["title"].is_string() && document.body["info"]["version"].is_string());
    for (path, methods) in [
        ("/instances", &["get", "post"][..]),
        ("/instances/{id}", &["get", "delete"]),
        ("/jobs", &["get"]),
        ("/jobs/{id}", &["get"]),
        ("/networks", &["get"]),
        ("/networks/{id}", &["get"]),
        ("/keys", &["get", "post"]),
        ("/keys/{id}", &["delete"]),
        ("/keys/self", &["get"]),
        ("/health/live", &["get"]),
        ("/health/ready", &["get"]),
        ("/metrics", &["get"]),
        ("/openapi.json", &["get"]),
    ] {
        for method in methods {
            assert!(document.body["paths"][path][method]["responses"].is_object(), "{method} {path}");
        }
    }
    // Each reference has a target.
    let mut references = Vec::new();
    collect_references(&document.body, &mut references);
    assert!(references.len() > 10);
    for reference in references {
        assert!(document.body.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }

    let made = client.post("/instances", json!({"image": "web:1", "name": "name-of-it"})).await;
    client.get(&format!("/instances/{}", made.instance())).await.expect(200);
    client.get(&format!("/instances/{}", uuid::Uuid::now_v7())).await.expect(404);
    client.get("/no/such/path-1").await.expect(404);
    send(client.anonymous(Method::GET, "/instances")).await.expect(401);
    raw::exchange(&client, &raw::head(&client, "BREW /instances", "")).await.expect(405);
    let metrics = send(client.anonymous(Method::GET, "/metrics")).await.expect(200);
    assert!(metrics.header("content-type").starts_with("text/plain"), "{}", metrics.header("content-type"));
    for line in [
        "http_requests_total{method=\"POST\",route=\"/instances\",status=\"202\"} 1",
        "http_requests_total{method=\"GET\",route=\"/instances/{id}\",status=\"200\"} 1",
        "http_requests_total{method=\"GET\",route=\"/instances/{id}\",status=\"404\"} 1",
        "http_requests_total{method=\"GET\",route=\"/instances\",status=\"401\"} 1",
        "http_requests_total{method=\"GET\",route=\"unknown\",status=\"404\"} 1",
        "http_requests_total{method=\"other\",route=\"/instances\",status=\"405\"} 1",
        "http_request_seconds_bucket{method=\"POST\",route=\"/instances\",le=\"+Inf\"} 1",
        "queue_notifications_total{outcome=\"sent\"} 1",
    ] {
        assert!(metrics.text.lines().any(|found| found == line), "{line}\n{}", metrics.text);
    }
    for name in ["db_pool_size", "db_checkout_seconds_count"] {
        assert!(metrics.text.contains(name), "{name}");
    }
    for secret in [made.instance(), made.job(), "name-of-it".into(), "path-1".into(), client.key.clone(), "BREW".into()]
    {
        assert!(!metrics.text.contains(&secret), "{secret}");
    }
    let is_uuid = |text: &str| text.len() == 36 && uuid::Uuid::parse_str(text).is_ok();
    let mut words = metrics.text.split(|c: char| !c.is_ascii_hexdigit() && c != '-');
    assert_eq!(words.find(|word| is_uuid(word)), None, "an id in a label");

    assert_eq!(send(client.anonymous(Method::GET, "/health/live")).await.expect(200).body["status"], "live");
    let ready = send(client.anonymous(Method::GET, "/health/ready")).await.expect(200).body;
    assert_eq!(ready, json!({"status": "ready", "primary": true, "redis": true}));
}

fn collect_references(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            into.extend(fields.get("$ref").and_then(Value::as_str).map(ToOwned::to_owned));
            fields.values().for_each(|value| collect_references(value, into));
        }
        Value::Array(items) => items.iter().for_each(|value| collect_references(value, into)),
        _ => {}
    }
}

/// Begins a POST and sends only half of its body.
async fn half_a_post(client: &Client) -> tokio::net::TcpStream {
    let mut stream = raw::connect(client).await;
    let head = raw::head(client, "POST /instances", "Content-Type: application/json\r\nContent-Length: 17\r\n");
    stream.write_all(&head).await.unwrap();
    stream.write_all(b"{\"image\"").await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_api_reports_it_and_finishes_requests() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("APP_SHUTDOWN_DELAY_MS", 1500);
    let (mut api, client) = cluster.serve();

    let made = client.post("/instances", json!({"image": "web:1"})).await.instance();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.get(&format!("/instances/{made}?wait=running&timeout=60")).await }
    });
    somebody_waits(&cluster).await;
    let mut half = half_a_post(&client).await;
    let started = Instant::now();
    api.signal(Signal::SIGTERM);
    api.line("stopping");
    // Load balancers get time to notice, and requests that still arrive are served.
    let ready = client.get("/health/ready").await.expect(503);

    assert_eq!((&ready.body["status"], ready.header("retry-after").is_empty()), (&json!("stopping"), false));
    client.get("/health/live").await.expect(200);

    client.post("/instances", json!({"image": "web:1"})).await.instance();
    let answer = waiting.await.unwrap().expect(200);
    assert_eq!(answer.body["status"], "pending");
    assert!(started.elapsed() < Duration::from_millis(1500), "the wait is cut short: {:?}", started.elapsed());

    half.write_all(b":\"web:1\"}").await.unwrap();
    assert_eq!(raw::read(half).await.status, 202);
    assert!(api.wait().success());
    assert!(started.elapsed() >= Duration::from_millis(1500), "{:?}", started.elapsed());
    assert!(reqwest::get(format!("{}/health/live", client.base)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn request_in_flight_finishes_after_connections_are_refused() {
    let cluster = Cluster::simulated().await;
    let (mut api, client) = cluster.serve();

    let mut half = half_a_post(&client).await;
    client.get("/health/live").await.expect(200);

    api.signal(Signal::SIGTERM);
    api.line("stopping");
    poll_until("a closed door", Duration::from_secs(60), async || {
        reqwest::get(format!("{}/health/live", client.base)).await.is_err().then_some(())
    })
    .await;
    half.write_all(b":\"web:1\"}").await.unwrap();
    let answer = raw::read(half).await;

    assert_eq!(answer.status, 202, "{}", answer.text);
    assert!(api.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_that_end_a_process_by_default_end_no_request() {
    let cluster = Cluster::simulated().await;
    let (mut api, client) = cluster.serve();
    let mut half = half_a_post(&client).await;
    client.get("/health/live").await.expect(200);

    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPIPE] {
        api.signal(signal);
        if signal != Signal::SIGPIPE {
            api.line(&format!("ignoring a signal signal=\"{signal}\""));
        }
        assert_eq!(client.get("/health/ready").await.expect(200).body["status"], "ready", "after {signal}");
    }
    api.signal(Signal::SIGQUIT);
    api.line("stopping");
    half.write_all(b":\"web:1\"}").await.unwrap();

    let answer = raw::read(half).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    assert_eq!(api.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn second_sigterm_stops_the_api_at_once() {
    // During the delay, and while the API waits for a request that takes long.
    for delay in [30_000, 0] {
        let mut cluster = Cluster::simulated().await;
        cluster.set("APP_SHUTDOWN_DELAY_MS", delay);
        let (mut api, client) = cluster.serve();
        let _half = half_a_post(&client).await;
        // This request is served after it, so the half body has been read.
        client.get("/keys/self").await.expect(200);
        api.signal(Signal::SIGTERM);
        api.line("stopping");
        let started = Instant::now();
        api.signal(Signal::SIGINT);
        api.wait();
        assert!(started.elapsed() < Duration::from_secs(3), "delay {delay}: {:?}", started.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_methods_on_public_paths_are_problems() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();

    for path in ["/health/live", "/health/ready", "/metrics", "/openapi.json"] {
        problem(&send(client.anonymous(Method::DELETE, path)).await, "method_not_allowed");
        assert_eq!(send(client.anonymous(Method::HEAD, path)).await.expect(200).text, "");
        // An invalid key is not checked here.
        send(client.anonymous(Method::GET, path).header("X-API-Key", "nonsense")).await.expect(200);
    }
}
