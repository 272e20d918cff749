//! `app dev`: one process that serves the API and runs a worker.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Client, Cluster, cluster::base_url};

#[tokio::test(flavor = "multi_thread")]
async fn dev_process_serves_works_and_stops_on_signals() {
    let cluster = Cluster::simulated().await;

    let dev = cluster.spawn("dev");
    dev.line("the worker is registered");
    let client = Client::new(&base_url(&dev), &cluster.key("acme", "admin"));
    let instance = client.create_running(json!({"image": cluster.image})).await;
    assert_eq!(instance["host"]["name"], "h1");
    assert_eq!(client.get("/health/ready").await.expect(200).body["status"], "ready");

    // API and worker record into the same metrics.
    let metrics = client.get("/metrics").await.expect(200).text;
    assert!(metrics.contains("http_requests_total") && metrics.contains("jobs_ended_total"), "{metrics}");
    assert_eq!(dev.terminate().code(), Some(0));

    // The process has unregistered: the next one need not wait, and finds its instances.
    let mut again = cluster.spawn("dev");
    let client = Client::new(&base_url(&again), &client.key);
    client.delete_fully(instance["id"].as_str().unwrap()).await;
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2] {
        again.signal(signal);
        again.line(&format!("ignoring a signal signal=\"{signal}\""));
    }

    client.get("/health/ready").await.expect(200);

    again.signal(Signal::SIGQUIT);
    assert_eq!(again.wait().code(), Some(0));
}
