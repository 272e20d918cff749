//! Loops that make no progress: a worker that was suspended as a whole continues, and one whose runtime alone hangs
//! ends itself.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::json;

use super::{
    crash::wait_for_step,
    simulated_host::{assert_exactly_once, instances_dir, ledger},
};
use crate::support::{Cluster, poll_until};

/// A loop without progress for this long ends the worker, at the lease that tests use.
const LIMIT: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn worker_stopped_beyond_the_limit_goes_on_when_continued() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("SIMULATED_LATENCY_MS", 600);
    let (_api, client) = cluster.serve();
    let worker = cluster.work();
    let running = client.create_running(json!({"image": "web:1"})).await;
    let cut_off = client.post("/instances", json!({"image": "web:1"})).await.expect(202);
    wait_for_step(&client, &cut_off.job(), "network").await;

    worker.signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    let meanwhile = client.post("/instances", json!({"image": "web:1"})).await.expect(202);
    poll_until("a pause longer than the limit", 3 * LIMIT, async || {
        (stopped.elapsed() > LIMIT + Duration::from_secs(2)).then_some(())
    })
    .await;
    let id = running["id"].as_str().unwrap();
    assert_eq!(client.get(&format!("/instances/{id}")).await.body["status"], "unknown");
    worker.signal(Signal::SIGCONT);

    // The job from before, the one accepted meanwhile, and a new one; each takes longer than a tick of the watchdog.
    for instance in [id, &cut_off.instance(), &meanwhile.instance()] {
        assert_eq!(client.wait_for(instance, "running").await["status"], "running");
        assert_exactly_once(&ledger(&[cluster.state.path()]), instance);
    }
    assert_eq!(client.wait_for_job(&cut_off.job()).await["crashes"], 1, "requeued while the worker was stopped");
    client.create_running(json!({"image": "web:1"})).await;
    assert_eq!(worker.terminate().code(), Some(0));
}

/// Replaces the file by a FIFO: reading it never returns.
fn replace_by_fifo(file: &Path) {
    let fifo = file.with_extension("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    std::fs::rename(fifo, file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_whose_runtime_hangs_ends_with_status_70() {
    let mut cluster = Cluster::simulated().await;
    // The runtime has one thread, and a call that never returns blocks it, as with a file system that hangs.
    cluster.set("TOKIO_WORKER_THREADS", 1);
    let (_api, client) = cluster.serve();
    let mut worker = cluster.work();
    let instance = client.create_running(json!({"image": "web:1"})).await;

    let file = instances_dir(cluster.state.path()).join(format!("{}.json", instance["id"].as_str().unwrap()));
    replace_by_fifo(&file);
    let deletion = client.delete(&format!("/instances/{}", instance["id"].as_str().unwrap())).await.expect(202);

    assert_eq!(worker.wait().code(), Some(70));
    worker.line("a loop has stalled for too long; this process ends");
    // The next worker, which a supervisor would start, finishes the job.
    std::fs::remove_file(file).unwrap();
    let _worker = cluster.work();
    assert_eq!(client.wait_for_job(&deletion.job()).await["status"], "succeeded");
}
