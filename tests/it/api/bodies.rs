//! A body of one megabyte, whatever is in it, takes little time of its thread: other requests on the same thread are
//! served meanwhile.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use super::problem::problem;
use crate::support::{Answer, Client, Cluster, client::send};

const MIB: usize = 1024 * 1024;

/// Returns as many copies of `item` as a body has room for, between `before` and `after`. `{}` in it is its number.
fn filled(before: &str, item: &str, after: &str) -> String {
    let mut body = before.to_owned();
    for n in 0.. {
        let next = item.replace("{}", &n.to_string());
        if body.len() + next.len() + after.len() > MIB {
            break;
        }
        body.push_str(&next);
        body.push(',');
    }
    body.pop();
    body + after
}

fn worst_bodies() -> Vec<(&'static str, String)> {
    let long_name = "n".repeat(MIB / 2);
    vec![
        ("half a million numbers", filled("[", "0", "]")),
        ("numbers below a long name", filled(&format!("{{\"{long_name}\":["), "0", "]}")),
        ("objects", filled("[", "{\"\":0}", "]")),
        ("lists", filled("[", "[]", "]")),
        ("unknown fields", filled("{", "\"x{}\":0", "}")),
        ("variables with wrong names", filled("{\"image\":\"web:1\",\"env\":{", "\"={}\":\"\"", "}}")),
        ("variables", filled("{\"image\":\"web:1\",\"env\":{", "\"A{}\":\"\"", "}}")),
        ("arguments", filled("{\"image\":\"web:1\",\"command\":[", "\"\"", "]}")),
        ("ports", filled("{\"image\":\"web:1\",\"ports\":[", "{\"container\":{}}", "]}")),
        ("labels", filled("{\"image\":\"web:1\",\"labels\":{", "\"{}=\":\"\"", "}}")),
        ("one text", format!("{{\"image\":\"{}\"}}", "x".repeat(MIB - 12))),
        ("one text of escapes", format!("{{\"image\":\"{}\"}}", "\\u0001".repeat((MIB - 12) / 6))),
        ("one name", format!("{{\"image\":\"web:1\",\"{}\":0}}", "x".repeat(MIB - 30))),
        ("one digit after the other", format!("{{\"image\":\"web:1\",\"cpu_millis\":{}}}", "1".repeat(MIB - 40))),
        ("nested lists", "[".repeat(MIB)),
    ]
}

async fn post(client: &Client, body: String) -> Answer {
    let request = client.request(Method::POST, "/instances").header("Content-Type", "application/json");
    send(request.header("Idempotency-Key", "k").body(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn largest_bodies_do_not_delay_other_requests() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("APP_HTTP_WORKERS", 1);
    let (_api, client) = cluster.serve();

    for (what, body) in worst_bodies() {
        assert!(body.len() <= MIB && body.len() > MIB - 64, "{what}: {}", body.len());
        // The best of three runs counts, so that other work on this machine does not matter.
        let mut best = Duration::MAX;
        for _ in 0..3 {
            let refused = tokio::spawn({
                let (client, body) = (client.clone(), body.clone());
                async move { post(&client, body).await }
            });
            let mut slowest = Duration::ZERO;
            while !refused.is_finished() {
                let sent_at = Instant::now();
                client.get("/health/live").await.expect(200);
                slowest = slowest.max(sent_at.elapsed());
            }
            let refused = refused.await.unwrap();
            assert!(matches!(refused.status, 400 | 422), "{what}: {}", refused.status);
            assert!(refused.text.len() < 400_000, "{what}: an answer of {} bytes", refused.text.len());
            best = best.min(slowest);
        }
        eprintln!("{what}: /health/live took {best:?}");
        assert!(best < Duration::from_millis(100), "{what}: /health/live took {best:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_one_request_are_bounded() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();

    let variables = json!({"image": "web:1", "env": (0..2000).map(|n| (format!("={n}"), "")).collect::<std::collections::BTreeMap<_, _>>()});
    let answer = client.post("/instances", variables).await;
    assert_eq!(problem(&answer, "validation_failed").len(), 100);
    let parameters: String = (0..2000).map(|n| format!("x{n}=&")).collect();
    let answer = client.get(&format!("/instances?{parameters}")).await;
    assert_eq!(problem(&answer, "validation_failed").len(), 100);
    let labels = "label=a%3Db&".repeat(65);
    let answer = client.get(&format!("/instances?{labels}")).await;
    assert_eq!(problem(&answer, "validation_failed"), ["?label"]);
    let scopes = json!({"name": "k", "scopes": vec!["no such scope"; 5000]});
    assert_eq!(problem(&client.post("/keys", scopes).await, "validation_failed").len(), 100);
    let many = json!({"image": "web:1", "command": vec![""; 20_000]});
    assert_eq!(problem(&client.post("/instances", many).await, "validation_failed"), [""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn env_and_command_have_64_kib_together() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    // Names count, and so does each byte of a character: 32 KiB, 16 KiB and four bytes, and the rest.
    let env = json!({"NAME": "x".repeat(32 * 1024 - 4), "ÄÖ": "é".repeat(8 * 1024)});
    let body = |argument: usize| json!({"image": "web:1", "command": ["x".repeat(argument)], "env": env});
    let rest = 16 * 1024 - 4;

    assert_eq!(client.post("/instances", body(rest)).await.status, 202);
    let refused = client.post("/instances", body(rest + 1)).await;

    assert_eq!(problem(&refused, "validation_failed"), ["/command", "/env"]);
}
