//! Workers that are killed, suspended or resumed with expired leases in the middle of a provision: the instance ends
//! running, and is never created twice.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use futures_util::future;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{
    fixture::LEASE,
    simulated_host::{assert_exactly_once, ledger},
};
use crate::support::{Client, Cluster, poll_until};

const POLL_TIMEOUT: Duration = Duration::from_secs(60);

/// A step takes between half of this and one and a half times this. Its beginning is written a quarter of a second
/// later and read later still, on a busy machine much later; neither the step nor the job may have ended by then.
const LONG_STEPS_MS: u32 = 1200;

/// Waits until the job has begun this step; panics when the job has finished.
pub async fn wait_for_step(client: &Client, job: &str, step: &str) {
    poll_until(&format!("step {step} begun"), POLL_TIMEOUT, async || {
        let job = client.get(&format!("/jobs/{job}")).await.expect(200).body;
        assert_eq!(job["finished_at"], json!(null), "the job finished too soon: {job}");
        // Steps are written a few times a second: this one may be over, and the next one begun.
        job["steps"].as_array().unwrap().iter().any(|known| known["name"] == step).then_some(())
    })
    .await;
}

/// Reads one expression over the job's row as text.
pub async fn column(sql: &tokio_postgres::Client, job: &str, column: &str) -> Option<String> {
    let query = format!("select ({column})::text from jobs where id::text = $1");
    sql.query_one(&query, &[&job]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_worker_finishes_jobs_and_creates_nothing_twice() {
    let mut cluster = Cluster::simulated().await;
    // With a lease of ten minutes the test would time out if jobs waited for its end.
    cluster.set("SIMULATED_LATENCY_MS", LONG_STEPS_MS).set("APP_LEASE_MS", 600_000);
    let (_api, client) = cluster.serve();
    let worker = cluster.work();
    let create = || async { client.post("/instances", json!({"image": "web:1"})).await.expect(202) };
    let early = future::join_all((0..4).map(|_| create())).await;
    wait_for_step(&client, &early[0].job(), "container").await;
    // The first jobs are in different steps by their random durations; these are in the first step.
    let late = future::join_all((0..4).map(|_| create())).await;
    wait_for_step(&client, &early[0].job(), "start").await;
    worker.kill();

    // The registration of the next worker returns the jobs to the queue at once.
    cluster.set("SIMULATED_LATENCY_MS", 5);
    let _worker = cluster.work();
    for answer in early.iter().chain(&late) {
        let instance = client.wait_for(&answer.instance(), "running").await;
        assert_eq!(instance["status"], "running", "{instance}");
        assert_exactly_once(&ledger(&[cluster.state.path()]), &answer.instance());
    }
    let job = client.get(&format!("/jobs/{}", early[0].job())).await.body;
    assert_eq!((&job["attempt"], &job["crashes"]), (&json!(1), &json!(1)), "a crash counted as an attempt: {job}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_hosts_job_is_requeued_for_that_host_only() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("SIMULATED_LATENCY_MS", LONG_STEPS_MS);
    let (_api, client) = cluster.serve();
    let worker = cluster.work();
    let answer = client.post("/instances", json!({"image": "web:1"})).await.expect(202);
    wait_for_step(&client, &answer.job(), "container").await;
    worker.kill();

    let (first, second) = (cluster.state.path().to_owned(), cluster.state.path().join("h2"));
    cluster.set("SIMULATED_LATENCY_MS", 5).set("APP_HOST_NAME", "h2").set("APP_STATE_DIR", second.display());
    let _second = cluster.work();
    let sql = cluster.sql().await;
    poll_until("its lease to run out", POLL_TIMEOUT, async || {
        (column(&sql, &answer.job(), "status").await? == "queued").then_some(())
    })
    .await;
    // The other host works, and has polled the queue since the job became due.
    for _ in 0..3 {
        client.create_running(json!({"image": "web:1"})).await;
        poll_until("a poll of the other host", POLL_TIMEOUT, async || {
            (column(&sql, &answer.job(), "run_at < now() - interval '1 s'").await? == "true").then_some(())
        })
        .await;
    }
    assert_eq!(column(&sql, &answer.job(), "status").await.as_deref(), Some("queued"));
    assert_eq!(client.get(&format!("/instances/{}", answer.instance())).await.body["host"]["name"], "h1");

    cluster.set("APP_HOST_NAME", "h1").set("APP_STATE_DIR", first.display());
    let _first = cluster.work();
    let instance = client.wait_for(&answer.instance(), "running").await;
    assert_eq!((&instance["status"], &instance["host"]["name"]), (&json!("running"), &json!("h1")), "{instance}");
    let dirs: [&Path; 2] = [&first, &second];
    assert_exactly_once(&ledger(&dirs), &answer.instance());
}

#[tokio::test(flavor = "multi_thread")]
async fn resumed_worker_writes_nothing_with_expired_leases() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("SIMULATED_LATENCY_MS", LONG_STEPS_MS);
    let (_api, client) = cluster.serve();
    let worker = cluster.work();
    let sql = cluster.sql().await;
    let create = || async { client.post("/instances", json!({"image": "web:1"})).await.expect(202) };
    let answers = future::join_all((0..6).map(|_| create())).await;
    wait_for_step(&client, &answers[0].job(), "start").await;
    worker.signal(Signal::SIGSTOP);
    let unfinished = "select count(*) from jobs where status = 'running'";
    let unfinished: i64 = sql.query_one(unfinished, &[]).await.unwrap().get(0);
    assert!(unfinished > 0, "stopped too late");

    let stopped = Instant::now();
    poll_until("all jobs queued again", POLL_TIMEOUT, async || {
        let row = sql.query_one("select count(*) from jobs where status = 'running'", &[]).await.unwrap();
        (row.get::<_, i64>(0) == 0 && stopped.elapsed() > 2 * LEASE).then_some(())
    })
    .await;
    let written = "select coalesce(jsonb_agg(to_jsonb(j) order by id), '[]') from jobs j where status = 'queued'";
    let before: Value = sql.query_one(written, &[]).await.unwrap().get(0);
    assert_eq!(before.as_array().unwrap().len() as i64, unfinished);
    worker.signal(Signal::SIGCONT);

    for answer in &answers {
        let instance = client.wait_for(&answer.instance(), "running").await;
        assert_eq!(instance["status"], "running", "{instance}");
        assert_exactly_once(&ledger(&[cluster.state.path()]), &answer.instance());
    }
    for job in before.as_array().unwrap() {
        // One end for each job, written by the worker with the newest token.
        let query = "select count(*) from events where kind = 'instance.running' and instance_id::text = $1";
        let ends = sql.query_one(query, &[&job["instance_id"].as_str().unwrap()]).await.unwrap();
        assert_eq!(ends.get::<_, i64>(0), 1);
        let job = job["id"].as_str().unwrap();
        assert_eq!(column(&sql, job, "lease_token").await.as_deref(), Some("2"), "not claimed once more");
        assert_eq!(column(&sql, job, "crashes").await.as_deref(), Some("1"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn job_fails_after_its_worker_dies_three_times() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("SIMULATED_LATENCY_MS", 1000);
    let (_api, client) = cluster.serve();

    let answer = client.post("/instances", json!({"image": "web:1"})).await.expect(202);
    let sql = cluster.sql().await;
    for token in ["1", "2", "3"] {
        let worker = cluster.work();
        poll_until("the job claimed", POLL_TIMEOUT, async || {
            let claimed = column(&sql, &answer.job(), "case when status = 'running' then lease_token end").await;
            (claimed.as_deref() == Some(token)).then_some(())
        })
        .await;
        worker.kill();
    }
    let _worker = cluster.work();
    let job = client.wait_for_job(&answer.job()).await;

    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("attempts_exhausted")), "{job}");

    let instance = client.wait_for(&answer.instance(), "failed").await;
    assert_eq!(
        (&instance["status"], &instance["status_reason"]["code"]),
        (&json!("failed"), &json!("attempts_exhausted")),
        "{instance}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn job_that_panics_frees_its_slot_and_fails_after_three_crashes() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("WORK_CONCURRENCY", 1);
    let (_api, client) = cluster.serve();
    let worker = cluster.work();

    let panicking = client.post("/instances", json!({"image": "panic/x:1"})).await.expect(202);
    // With one slot, this job runs only if the other one's slot is free again.
    let beside = client.create_running(json!({"image": "web:1"})).await;

    let job = client.wait_for_job(&panicking.job()).await;
    assert_eq!((&job["status"], &job["crashes"]), (&json!("failed"), &json!(3)), "{job}");
    assert_eq!(job["error"]["code"], "attempts_exhausted", "{job}");
    let instance = client.wait_for(&panicking.instance(), "failed").await;
    assert_eq!(instance["status"], "failed", "{instance}");
    let logged = worker.log().matches("attempt panicked; recording it as a crash of the worker").count();
    assert_eq!(logged, 3, "once per crash");
    // The failed job leaves no work, and the worker continues.
    client.delete_fully(&panicking.instance()).await;
    client.delete_fully(beside["id"].as_str().unwrap()).await;
    client.create_running(json!({"image": "web:1"})).await;
    assert_eq!(worker.terminate().code(), Some(0));
}
