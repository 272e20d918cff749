//! The request id of a response leads to every line that was logged for it, in the API and in the worker.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, Client, Cluster};

/// The first line with this text and this request id.
fn line(process: &App, text: &str, request_id: &str) -> String {
    let line = process.line_with(&[text, request_id]);
    assert!(line.contains(&format!("request_id={request_id}")), "{line}");
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn request_id_of_a_500_is_on_the_lines_with_cause_and_end() {
    let cluster = Cluster::simulated().await;
    let (api, client) = cluster.serve();
    cluster.sql().await.batch_execute("alter table networks rename to networks_gone").await.unwrap();

    let answer = client.get("/networks").await.expect(500);

    let request_id = answer.body["request_id"].as_str().unwrap();
    // `undefined_table`; other lines of the request name its route.
    let cause = line(&api, "42P01", request_id);
    assert!(cause.contains("ERROR") && cause.contains("networks"), "{cause}");
    let end = line(&api, "answered request", request_id);
    for part in ["INFO", "status=500", "duration_ms=", "route=\"/networks\"", "method=GET", "tenant=", "key="] {
        assert!(end.contains(part), "{part}: {end}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_id_of_a_202_is_on_the_lines_of_its_worker() {
    let cluster = Cluster::simulated().await;
    let (api, client) = cluster.serve();
    let worker = cluster.work();
    let request_id = "order-4711.a";

    let create = client.request(Method::POST, "/instances").header("X-Request-Id", request_id);
    let response = create.json(&json!({"image": "web:1"})).send().await.unwrap();

    assert_eq!(response.status(), 202);
    line(&api, "answered request", request_id);
    let job: Value = response.json().await.unwrap();
    for text in ["claimed job", "finished job"] {
        let line = line(&worker, text, request_id);
        assert!(line.contains(job["job_id"].as_str().unwrap()), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_lines_carry_the_request_id_in_their_span() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("APP_LOG_FORMAT", "json");
    let (api, _) = {
        let api = cluster.spawn("serve");
        let listening: Value = serde_json::from_str(&api.line("the API listens")).unwrap();
        let base = format!("http://{}", listening["address"].as_str().unwrap());
        let client = Client::new(&base, &cluster.key("acme", "admin"));
        client.request(Method::GET, "/keys/self").header("X-Request-Id", "order-4712").send().await.unwrap();
        (api, client)
    };

    let line: Value = serde_json::from_str(&api.line_with(&["answered request", "order-4712"])).unwrap();

    assert_eq!(line["span"]["request_id"], "order-4712", "{line}");
    assert_eq!(line["status"], 200, "{line}");
}
