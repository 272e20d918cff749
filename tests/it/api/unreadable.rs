//! A row with a value that this release does not know: an error of that row alone, with its id in the log.

use serde_json::json;
use uuid::Uuid;

use super::problem::problem;
use crate::support::{Answer, Cluster};

fn ids(page: &Answer) -> Vec<&str> {
    page.body["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_row_fails_alone_and_is_logged_with_its_id() {
    let cluster = Cluster::simulated().await;
    let (api, client) = cluster.serve();
    let mut created = Vec::new();
    for _ in 0..3 {
        created.push(client.post("/instances", json!({"image": "web:1"})).await.instance());
    }
    let unreadable: Uuid = created[1].parse().unwrap();
    let reason = json!({"code": "of_a_newer_release", "detail": "unknown here"});
    let sql = "update instances set status_reason = $2 where id = $1";
    assert_eq!(cluster.sql().await.execute(sql, &[&unreadable, &reason]).await.unwrap(), 1);

    let shown = client.get(&format!("/instances/{unreadable}")).await;
    let first = client.get("/instances?limit=2").await.expect(200);
    let cursor = first.body["next_cursor"].as_str().unwrap();
    let second = client.get(&format!("/instances?limit=2&cursor={cursor}")).await.expect(200);

    problem(&shown, "internal");
    assert!(!shown.text.contains("of_a_newer_release"), "{}", shown.text);
    // It keeps its place on the page, so that the cursor leads to the rows after it.
    assert_eq!((ids(&first), ids(&second)), (vec![created[2].as_str()], vec![created[0].as_str()]));
    client.get(&format!("/instances/{}", created[0])).await.expect(200);
    let line = api.line("answering 500");
    assert!(line.contains(&created[1]) && line.contains("status_reason"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_job_fails_alone_and_is_logged_with_its_id() {
    let cluster = Cluster::simulated().await;
    let (api, client) = cluster.serve();
    let mut created = Vec::new();
    for _ in 0..3 {
        created.push(client.post("/instances", json!({"image": "web:1"})).await.job());
    }
    let unreadable: Uuid = created[1].parse().unwrap();
    let error = json!({"code": "of_a_newer_release", "detail": "unknown here"});
    let sql = "update jobs set error = $2 where id = $1";
    assert_eq!(cluster.sql().await.execute(sql, &[&unreadable, &error]).await.unwrap(), 1);

    let shown = client.get(&format!("/jobs/{unreadable}")).await;
    let first = client.get("/jobs?limit=2").await.expect(200);
    let cursor = first.body["next_cursor"].as_str().unwrap();
    let second = client.get(&format!("/jobs?limit=2&cursor={cursor}")).await.expect(200);

    problem(&shown, "internal");
    assert_eq!((ids(&first), ids(&second)), (vec![created[2].as_str()], vec![created[0].as_str()]));
    let line = api.line("answering 500");
    assert!(line.contains(&created[1]) && line.contains("error"), "{line}");
}
