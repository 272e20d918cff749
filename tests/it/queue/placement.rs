//! Placement of instances by host name, by label and by capacity, and the reasons given when no host can take one.

use std::time::{Duration, Instant};

use futures_util::future;
use serde_json::{Value, json};

use super::crash::column;
use crate::support::{Cluster, poll_until};

#[tokio::test(flavor = "multi_thread")]
async fn instances_are_placed_by_request_or_fail_with_reasons() {
    let mut cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let state = cluster.state.path().to_owned();
    let mut workers = Vec::new();
    for (name, labels, memory) in [("h1", "zone=a", 512), ("h2", "zone=b,disk=ssd", 1024)] {
        cluster.set("APP_HOST_NAME", name).set("APP_HOST_LABELS", labels).set("APP_HOST_MEMORY_MIB", memory);
        workers.push(cluster.set("APP_STATE_DIR", state.join(name).display()).work());
    }
    let host = async |placement: Value| {
        let body = json!({"image": "web:1", "memory_mib": 16, "placement": placement});
        client.create_running(body).await["host"]["name"].as_str().unwrap().to_owned()
    };
    let (by_name, other_name, by_label, by_both) = tokio::join!(
        host(json!({"host": "h2"})),
        host(json!({"host": "h1"})),
        host(json!({"labels": {"disk": "ssd"}})),
        host(json!({"host": "h1", "labels": {"zone": "a"}})),
    );
    assert_eq!([by_name, other_name, by_label, by_both], ["h2", "h1", "h2", "h1"]);
    // Only one host is large enough.
    let large = client.create_running(json!({"image": "web:1", "memory_mib": 900})).await;
    assert_eq!(large["host"]["name"], "h2");

    let started = Instant::now();
    for (body, reasons) in [
        (json!({"memory_mib": 4096}), ["h1: memory_mib 4096 of 512", "h2: memory_mib 4096 of 1024"]),
        (json!({"placement": {"host": "h9"}}), ["h1: placement asks for host h9", "h2: placement asks for host h9"]),
        (
            json!({"placement": {"labels": {"zone": "c"}}}),
            ["h1: placement asks for other labels", "h2: placement asks for other labels"],
        ),
    ] {
        let mut body = body;
        body["image"] = json!("web:1");
        let answer = client.post("/instances", body).await.expect(202);
        let instance = client.wait_for(&answer.instance(), "failed").await;
        assert_eq!(instance["status_reason"]["code"], "no_capacity", "{instance}");
        let detail = instance["status_reason"]["detail"].as_str().unwrap();
        assert!(reasons.iter().all(|reason| detail.contains(reason)), "{detail}");
        assert_eq!(client.wait_for_job(&answer.job()).await["error"]["code"], "no_capacity");
    }
    assert!(started.elapsed() < Duration::from_secs(45), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn instance_that_does_not_fit_waits_for_capacity() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("APP_HOST_MEMORY_MIB", 4 * 128);
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let sql = cluster.sql().await;

    let create = || async { client.post("/instances", json!({"image": "web:1", "memory_mib": 128})).await.instance() };
    future::join_all((0..8).map(|_| create())).await;
    let held =
        "select coalesce(sum(memory_mib), 0)::bigint from instances where host_id is not null and status <> 'deleted'";
    let mut finished = 0;
    poll_until("all eight have had their turn", Duration::from_secs(90), async || {
        assert!(sql.query_one(held, &[]).await.unwrap().get::<_, i64>(0) <= 4 * 128);
        let running = "select id::text from instances where status = 'running'";
        for row in sql.query(running, &[]).await.unwrap() {
            client.delete_fully(row.get(0)).await;
            finished += 1;
        }
        (finished == 8).then_some(())
    })
    .await;

    let failed = sql.query_one("select count(*) from jobs where status <> 'succeeded'", &[]).await.unwrap();

    assert_eq!(failed.get::<_, i64>(0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn job_of_unknown_kind_stays_queued_while_others_run() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let sql = cluster.sql().await;

    let newer = client.post("/instances", json!({"image": "web:1"})).await.expect(202);
    sql.execute("update jobs set kind = 'dance'", &[]).await.unwrap();
    let _worker = cluster.work();
    for _ in 0..3 {
        client.create_running(json!({"image": "web:1"})).await;
    }

    for (name, expected) in [("kind", "dance"), ("status", "queued"), ("attempt", "0")] {
        assert_eq!(column(&sql, &newer.job(), name).await.as_deref(), Some(expected));
    }
    // This release cannot show it either, and shows the others.
    let jobs = client.get("/jobs").await.expect(200).body;
    assert_eq!(jobs["items"].as_array().map(Vec::len), Some(3), "{jobs}");
}
