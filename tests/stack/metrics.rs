//! Prometheus, in the stack.

use serde_json::Value;

use crate::{
    eventually,
    stack::{Stack, docker},
};

fn ask(stack: &Stack, path: &str) -> Value {
    let url = format!("http://127.0.0.1:9090/api/v1/{path}");
    let said = docker(&["exec", &stack.container("prometheus"), "wget", "-qO-", &url]);
    serde_json::from_str::<Value>(&said).unwrap()["data"].clone()
}

pub async fn prometheus_sees_all_targets_up_and_counters_move(stack: &Stack) {
    eventually(120, "all targets up", async || {
        let targets = ask(stack, "targets?state=active")["activeTargets"].as_array().unwrap().clone();
        let up = |job: &str| {
            targets.iter().filter(|target| target["labels"]["job"] == job && target["health"] == "up").count()
        };
        let up = (up("api"), up("worker"), targets.len());
        // And Prometheus itself.
        if up == (3, 1, 5) { Ok(()) } else { Err(format!("{up:?} {targets:?}")) }
    })
    .await;
    let rules = ask(stack, "rules")["groups"].as_array().unwrap().clone();
    for rule in rules.iter().flat_map(|group| group["rules"].as_array().unwrap()) {
        assert_ne!(rule["health"], "err", "{rule}");
    }
    let count = |what: &str| -> f64 {
        let found = ask(stack, &format!("query?query=sum({what})"));
        found["result"][0]["value"][1].as_str().map_or(0.0, |value| value.parse().unwrap())
    };
    let before = (count("http_requests_total"), count("jobs_ended_total"));
    let instance = stack.client.create_running(serde_json::json!({"image": crate::stack::demo_image()})).await;
    stack.client.delete_fully(instance["id"].as_str().unwrap()).await;
    eventually(60, "counters move", async || {
        let now = (count("http_requests_total"), count("jobs_ended_total"));
        if now.0 > before.0 && now.1 > before.1 { Ok(()) } else { Err((before, now)) }
    })
    .await;
}
