//! Prometheus in the stack: its targets, its rules, and counters that grow.

use serde_json::Value;

use crate::{
    poll_until,
    stack::{Stack, docker},
};

/// Returns `data` of a response of Prometheus' HTTP API.
fn query(stack: &Stack, path: &str) -> Value {
    let url = format!("http://127.0.0.1:9090/api/v1/{path}");
    let output = docker(&["exec", &stack.container("prometheus"), "wget", "-qO-", &url]);
    serde_json::from_str::<Value>(&output).unwrap()["data"].clone()
}

pub async fn prometheus_scrapes_all_targets(stack: &Stack) {
    poll_until(120, "all targets up", async || {
        let targets = query(stack, "targets?state=active")["activeTargets"].as_array().unwrap().clone();
        let up = |job: &str| {
            targets.iter().filter(|target| target["labels"]["job"] == job && target["health"] == "up").count()
        };
        let up = (up("api"), up("worker"), targets.len());
        // The fifth target is Prometheus itself.
        if up == (3, 1, 5) { Ok(()) } else { Err(format!("{up:?} {targets:?}")) }
    })
    .await;
    let rules = query(stack, "rules")["groups"].as_array().unwrap().clone();
    for rule in rules.iter().flat_map(|group| group["rules"].as_array().unwrap()) {
        assert_ne!(rule["health"], "err", "{rule}");
    }
    let count = |what: &str| -> f64 {
        let found = query(stack, &format!("query?query=sum({what})"));
        found["result"][0]["value"][1].as_str().map_or(0.0, |value| value.parse().unwrap())
    };
    let before = (count("http_requests_total"), count("jobs_ended_total"));
    let instance = stack.client.create_running(serde_json::json!({"image": crate::stack::demo_image()})).await;
    stack.client.delete_fully(instance["id"].as_str().unwrap()).await;
    poll_until(60, "the counters grow", async || {
        let now = (count("http_requests_total"), count("jobs_ended_total"));
        if now.0 > before.0 && now.1 > before.1 { Ok(()) } else { Err((before, now)) }
    })
    .await;
}
