//! `app healthcheck`, and what it calls: the API's readiness and the worker's own listener.

use std::{process::Command, time::Duration};

use nix::sys::signal::Signal;
use serde_json::json;

use super::exited::run_to_exit;
use crate::support::{App, Client, Cluster, poll_until, proxy::Proxy};

fn healthcheck(cluster: &Cluster, variable: &str, base: &str) -> Command {
    let mut command = cluster.command(&["healthcheck"]);
    command.env_remove("RUST_LOG").env(variable, base.trim_start_matches("http://"));
    command
}

const SECONDS: Duration = Duration::from_secs(60);

/// Returns the address of the worker's own listener.
fn health_url(worker: &App) -> String {
    let line = worker.line("starting service: \"actix-web-service-");
    let address = line.split("actix-web-service-").nth(1).unwrap().split('"').next().unwrap();
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn api_is_ready_until_it_stops() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("APP_SHUTDOWN_DELAY_MS", 600_000);
    let (api, client) = cluster.serve();
    let check = || run_to_exit(healthcheck(&cluster, "APP_LISTEN", &client.base), SECONDS);
    let ready = check().expect(0);
    assert_eq!((ready.stdout.as_str(), ready.stderr.as_str()), ("", ""));
    // An API that listens on all addresses is called on loopback.
    let port = client.base.rsplit(':').next().unwrap();
    run_to_exit(healthcheck(&cluster, "APP_LISTEN", &format!("0.0.0.0:{port}")), SECONDS).expect(0);

    api.signal(Signal::SIGTERM);
    api.line("stopping");
    let stopping = check().expect(1);
    assert!(
        stopping.line().starts_with("app: not ready: 503 ") && stopping.line().contains("stopping"),
        "{stopping:?}"
    );
    // Requests are still served until the load balancer has noticed.
    client.get("/keys/self").await.expect(200);
    assert_eq!(api.terminate().code(), Some(0), "the second SIGTERM is at once");
    let gone = check().expect(1);
    assert!(gone.line().starts_with("app: nothing listens on 127.0.0.1:"), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_is_ready_while_heartbeats_succeed_and_serves_metrics() {
    let mut cluster = Cluster::simulated().await;
    let proxy = Proxy::start(&cluster.database_url).await;
    cluster.set("DATABASE_URL", &proxy.url).set("RUST_LOG", "info");
    let worker = cluster.work();
    let client = Client::new(&health_url(&worker), "no key is needed here");
    let ready = client.get("/health/ready").await.expect(200).body;
    assert_eq!(ready["status"], "ready", "{ready}");
    assert!(ready["heartbeat_age_s"].as_f64().unwrap() < 3.0, "{ready}");
    client.get("/health/live").await.expect(200);
    let metrics = client.get("/metrics").await.expect(200);
    assert!(metrics.header("content-type").starts_with("text/plain"));
    assert!(metrics.text.contains("db_checkout_seconds"), "{}", metrics.text);
    let unknown = client.get("/instances").await.expect(404);
    assert_eq!(unknown.code(), "not_found");
    run_to_exit(healthcheck(&cluster, "APP_HEALTHCHECK_WORKER", &client.base), SECONDS).expect(0);
    let by_option = ["healthcheck", "--worker", client.base.trim_start_matches("http://")];
    run_to_exit(cluster.command(&by_option), SECONDS).expect(0);

    // Without Postgres the worker is alive and not ready.
    drop(proxy);
    poll_until("the worker is not ready", SECONDS, async || {
        (client.get("/health/ready").await.status == 503).then_some(())
    })
    .await;
    client.get("/health/live").await.expect(200);
    let silent = run_to_exit(healthcheck(&cluster, "APP_HEALTHCHECK_WORKER", &client.base), SECONDS).expect(1);
    assert!(silent.line().starts_with("app: not ready: 503 "), "{silent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_whose_host_name_was_taken_is_not_ready_with_reason() {
    let cluster = Cluster::simulated().await;
    let worker = cluster.work();

    let client = Client::new(&health_url(&worker), "no key is needed here");
    client.get("/health/ready").await.expect(200);

    // As when the worker was suspended for so long that another one could start under its name elsewhere.
    let taken = "with other as (insert into workers select (w).* from (
                     select jsonb_populate_record(w, jsonb_build_object('boot_id', gen_random_uuid())) as w from workers w
                 ) as copies returning boot_id)
                 update hosts set current_boot = boot_id from other";
    assert_eq!(cluster.sql().await.execute(taken, &[]).await.unwrap(), 1);

    worker.line("another worker has registered for this host");
    poll_until("the worker is not ready", SECONDS, async || {
        (client.get("/health/ready").await.status == 503).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_worker_is_not_ready_and_ends_on_a_second_signal() {
    let mut cluster = Cluster::simulated().await;
    // The job never ends, and so draining does not either.
    cluster.set("SIMULATED_LATENCY_MS", 500_000).set("RUST_LOG", "info");
    let (_api, client) = cluster.serve();
    let worker = cluster.work();

    let health = health_url(&worker);
    let id = client.post("/instances", json!({"image": cluster.image})).await.instance();
    client.wait_for(&id, "provisioning").await;
    worker.signal(Signal::SIGTERM);
    worker.line("stopping");

    let draining = run_to_exit(healthcheck(&cluster, "APP_HEALTHCHECK_WORKER", &health), SECONDS).expect(1);

    assert!(draining.line().contains("unavailable"), "{draining:?}");
    assert_eq!(worker.terminate().code(), Some(0));
}
