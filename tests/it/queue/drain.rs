//! Signals to a worker: after SIGTERM it finishes its jobs and claims no more; after a second SIGTERM it releases
//! running jobs.

use nix::sys::signal::Signal;
use serde_json::json;

use super::{
    crash::{column, wait_for_step},
    simulated_host::{assert_exactly_once, ledger},
};
use crate::support::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn stopping_worker_finishes_its_jobs_and_claims_no_more() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("SIMULATED_LATENCY_MS", 500);
    let (_api, client) = cluster.serve();
    let worker = cluster.work();
    let sql = cluster.sql().await;
    let begun = client.post("/instances", json!({"image": "web:1"})).await.expect(202);
    wait_for_step(&client, &begun.job(), "network").await;
    worker.signal(Signal::SIGTERM);
    worker.line("stopping");
    let later = client.post("/instances", json!({"image": "web:1"})).await.expect(202);
    let mut worker = worker;
    assert_eq!(worker.wait().code(), Some(0));

    assert_eq!(client.get(&format!("/instances/{}", begun.instance())).await.body["status"], "running");
    let job = client.get(&format!("/jobs/{}", later.job())).await.body;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("queued"), &json!(0)), "{job}");
    let unregistered = sql.query_one("select count(*) from workers where stopped_at is not null", &[]).await.unwrap();
    assert_eq!(unregistered.get::<_, i64>(0), 1);
    let _worker = cluster.work();
    assert_eq!(client.wait_for(&later.instance(), "running").await["status"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_that_end_a_process_by_default_end_no_job() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("SIMULATED_LATENCY_MS", 500);
    let (_api, client) = cluster.serve();
    let mut worker = cluster.work();
    let begun = client.post("/instances", json!({"image": "web:1"})).await.expect(202);
    wait_for_step(&client, &begun.job(), "image").await;

    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2] {
        worker.signal(signal);
        worker.line(&format!("ignoring a signal signal=\"{signal}\""));
    }
    worker.signal(Signal::SIGQUIT);
    worker.line("stopping");

    assert_eq!(worker.wait().code(), Some(0));
    let job = client.get(&format!("/jobs/{}", begun.job())).await.body;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("succeeded"), &json!(1)), "{job}");
}

#[tokio::test(flavor = "multi_thread")]
async fn second_sigterm_releases_running_jobs_at_once() {
    let mut cluster = Cluster::simulated().await;
    // With a lease of ten minutes the test would time out if jobs waited for its end.
    cluster.set("SIMULATED_LATENCY_MS", 2000).set("APP_LEASE_MS", 600_000);
    let (_api, client) = cluster.serve();
    let mut worker = cluster.work();
    let sql = cluster.sql().await;

    let answer = client.post("/instances", json!({"image": "web:1"})).await.expect(202);
    wait_for_step(&client, &answer.job(), "image").await;
    worker.signal(Signal::SIGTERM);
    worker.line("stopping");
    worker.signal(Signal::SIGTERM);
    assert_eq!(worker.wait().code(), Some(0));

    let job = client.get(&format!("/jobs/{}", answer.job())).await.body;
    assert_eq!(
        (&job["status"], &job["attempt"], &job["crashes"]),
        (&json!("queued"), &json!(0), &json!(0)),
        "not finished, and neither an attempt nor a crash: {job}"
    );

    cluster.set("SIMULATED_LATENCY_MS", 5);
    let _worker = cluster.work();
    assert_eq!(client.wait_for(&answer.instance(), "running").await["status"], "running");
    assert_eq!(column(&sql, &answer.job(), "lease_token").await.as_deref(), Some("2"), "the token goes on");
    assert_exactly_once(&ledger(&[cluster.state.path()]), &answer.instance());
}
