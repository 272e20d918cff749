//! Tenants take turns, on real processes: the claim decides which jobs start, not the order of messages in Redis.

use std::time::Duration;

use serde_json::json;

use crate::support::{Client, Cluster, poll_until};

const SLOTS: i64 = 4;

async fn post(client: &Client) -> String {
    client.post("/instances", json!({"image": "web:1"})).await.expect(202).job()
}

#[tokio::test(flavor = "multi_thread")]
async fn job_behind_thirty_two_of_another_tenant_gets_the_next_slot() {
    let mut cluster = Cluster::simulated().await;
    // A job takes about 1.5 s.
    cluster.set("WORK_CONCURRENCY", SLOTS).set("SIMULATED_LATENCY_MS", 300);
    let (_api, flood) = cluster.serve();
    let other = flood.with_key(&cluster.key("other", "admin"));
    let _worker = cluster.work();
    let sql = cluster.sql().await;
    // One by one, so that each wakes the worker: by the order of messages the other tenant's job would be the last.
    for _ in 0..32 {
        post(&flood).await;
    }
    poll_until("all slots taken", Duration::from_secs(30), async || {
        let running: i64 =
            sql.query_one("select count(*) from jobs where status = 'running'", &[]).await.unwrap().get(0);
        (running == SLOTS).then_some(())
    })
    .await;

    let job = post(&other).await;

    assert_eq!(other.wait_for_job(&job).await["status"], "succeeded");
    // A claim that was running when the job was accepted may have taken the slots that were free then.
    let between = "select count(*) from jobs j, jobs o
                   where o.id::text = $1 and j.started_at > o.created_at and j.started_at < o.started_at";
    let between: i64 = sql.query_one(between, &[&job]).await.unwrap().get(0);
    assert!(between <= SLOTS, "{between} jobs of the flood started in between");
    let left: i64 = sql.query_one("select count(*) from jobs where status = 'queued'", &[]).await.unwrap().get(0);
    assert!(left > 0, "there was no flood any more");
}
