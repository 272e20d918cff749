//! Deletes that meet a provision in progress, no host yet, a dead host, a retry that is waiting, or a job that was just
//! added.

use std::time::Duration;

use app::core::queue::finish::Outcome;
use serde_json::json;

use super::{
    crash::{column, wait_for_step},
    fixture::{QueueFixture, delete, spec},
    simulated_host::leftovers,
};
use crate::support::{Cluster, poll_until};

#[tokio::test(flavor = "multi_thread")]
async fn delete_during_provision_cancels_it_and_leaves_nothing() {
    let mut cluster = Cluster::simulated().await;
    // Two more steps of at least 1.2 s follow, and a heartbeat is sent every 0.5 s.
    cluster.set("SIMULATED_LATENCY_MS", 2400);
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let answer = client.post("/instances", json!({"image": "web:1", "ports": [{"container": 80}]})).await.expect(202);
    let path = format!("/instances/{}", answer.instance());
    wait_for_step(&client, &answer.job(), "container").await;
    let deletion = client.delete(&path).await.expect(202);
    // A repeated delete returns the same job.
    assert_eq!(client.delete(&path).await.expect(202).job(), deletion.job());

    let provision = client.wait_for_job(&answer.job()).await;
    assert_eq!(provision["status"], "cancelled", "{provision}");
    let undone = |step: &serde_json::Value| step["name"] == "undo" && step["status"] == "undone";
    assert!(provision["steps"].as_array().unwrap().iter().any(undone), "{provision}");
    assert_eq!(client.wait_for_job(&deletion.job()).await["status"], "succeeded");
    assert_eq!(client.wait_for(&answer.instance(), "deleted").await["status"], "deleted");
    assert_eq!(leftovers(cluster.state.path()), Vec::<String>::new());
    let sql = cluster.sql().await;
    for table in ["addresses", "published_ports"] {
        let left: i64 = sql.query_one(&format!("select count(*) from {table}"), &[]).await.unwrap().get(0);
        assert_eq!(left, 0, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_before_placement_completes_at_once() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();

    let answer = client.post("/instances", json!({"image": "web:1"})).await.expect(202);
    let path = format!("/instances/{}", answer.instance());
    let deletion = client.delete(&path).await.expect(202);
    assert_eq!(deletion.body["instance"]["status"], "deleted", "{}", deletion.text);
    assert_eq!(client.get(&format!("/jobs/{}", deletion.job())).await.body["status"], "succeeded");
    assert_eq!(client.get(&format!("/jobs/{}", answer.job())).await.body["status"], "superseded");
    assert_eq!(client.delete(&path).await.expect(202).job(), deletion.job());

    let addresses = cluster.sql().await.query_one("select count(*) from addresses", &[]).await.unwrap();
    assert_eq!(addresses.get::<_, i64>(0), 0);

    // A worker that starts later finds no job: the instance is not created again.
    let _worker = cluster.work();
    client.create_running(json!({"image": "web:1"})).await;
    assert_eq!(client.get(&path).await.body["status"], "deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_on_a_dead_host_waits_until_the_host_returns() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let worker = cluster.work();
    let instance = client.create_running(json!({"image": "web:1"})).await;
    let id = instance["id"].as_str().unwrap();
    worker.kill();
    let deletion = client.delete(&format!("/instances/{id}")).await.expect(202);
    // The rescue has found that the host is gone, and sets the reason.
    poll_until("host_lost", Duration::from_secs(60), async || {
        let instance = client.get(&format!("/instances/{id}")).await.body;
        assert_eq!(instance["status"], "deleting", "{instance}");
        (instance["status_reason"]["code"] == "host_lost").then_some(())
    })
    .await;
    assert_eq!(client.get(&format!("/jobs/{}", deletion.job())).await.body["status"], "queued");
    assert!(!leftovers(cluster.state.path()).is_empty());
    let sql = cluster.sql().await;
    let addresses = "select count(*) from addresses";
    // The address is not free for other instances while the container may run.
    assert_eq!(sql.query_one(addresses, &[]).await.unwrap().get::<_, i64>(0), 1);

    let _worker = cluster.work();
    assert_eq!(client.wait_for(id, "deleted").await["status"], "deleted");
    assert_eq!(leftovers(cluster.state.path()), Vec::<String>::new());
    assert_eq!(sql.query_one(addresses, &[]).await.unwrap().get::<_, i64>(0), 0);
}

/// The back-off grows to five minutes; a delete must not wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn failed_attempt_is_not_retried_before_an_accepted_delete() {
    let fixture = QueueFixture::new().await;
    let worker = fixture.register_worker("h1", None).await;

    let instance = fixture.create(fixture.tenant, &spec(1)).await;
    let provision = fixture.claim_next(worker, 1).await.remove(0);
    let deletion = delete(&fixture.db, fixture.tenant, instance.id).await.unwrap().unwrap();
    let after = Duration::from_secs(300);
    fixture.finish(&provision, Outcome::Retry { after, reason: None, uses_attempt: true }).await;
    let job = fixture.job(instance.job).await;

    assert_eq!(job["status"], "cancelled", "{job}");

    let next = fixture.claim_next(worker, 1).await;
    assert_eq!(next.iter().map(|job| job.lease.job).collect::<Vec<_>>(), [deletion.job]);
}

/// A statement does not see rows that were committed while it waited for a lock, such as a restart that is queued at
/// that moment.
#[tokio::test(flavor = "multi_thread")]
async fn job_added_while_delete_waits_for_the_row_is_superseded() {
    let mut fixture = QueueFixture::new().await;
    let worker = fixture.register_worker("h1", None).await;
    let instance = fixture.create(fixture.tenant, &spec(1)).await;
    fixture.succeed(&fixture.claim_next(worker, 1).await[0]).await;

    let mut host = fixture.cluster.sql().await;
    let transaction = host.transaction().await.unwrap();
    let id = instance.id.uuid();
    transaction.execute("update instances set next_seq = next_seq + 1 where id = $1", &[&id]).await.unwrap();
    transaction
        .execute(
            "insert into jobs (id, kind, tenant_id, instance_id, host_id, generation, seq, run_at)
             select gen_random_uuid(), 'start', tenant_id, id, host_id, generation, next_seq - 1, now() + interval '5 min'
             from instances where id = $1",
            &[&id],
        )
        .await
        .unwrap();
    let (db, tenant) = (fixture.db.clone(), fixture.tenant);
    let deleting = tokio::spawn(async move { delete(&db, tenant, instance.id).await });
    let sql = &mut fixture.sql;
    poll_until("the delete waiting for the row", Duration::from_secs(30), async || {
        let query =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        (sql.query_one(query, &[]).await.unwrap().get::<_, i64>(0) == 1).then_some(())
    })
    .await;
    transaction.commit().await.unwrap();
    let deletion = deleting.await.unwrap().unwrap().unwrap();
    let query = "select status from jobs where kind = 'start'";
    assert_eq!(fixture.sql.query_one(query, &[]).await.unwrap().get::<_, String>(0), "superseded");
    assert_eq!(column(&fixture.sql, &deletion.job.to_string(), "seq").await.as_deref(), Some("3"));
    assert_eq!(fixture.claim_next(worker, 1).await[0].lease.job, deletion.job);
}
