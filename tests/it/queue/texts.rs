//! Texts of a registry or an image that Postgres refuses or that are too long: they affect no job of another tenant.

use std::time::Duration;

use futures_util::future;
use serde_json::{Value, json};

use super::crash::column;
use crate::support::{App, Client, Cluster, client::send, poll_until};

/// The greatest length of a detail, in bytes.
const LIMIT: usize = 2048;

fn assert_clean(detail: &Value) {
    let text = detail.as_str().expect("a text");
    assert!(text.len() <= LIMIT && !text.contains(char::is_control), "{} bytes: {text:?}", text.len());
}

/// Returns the status of the worker's readiness, from its own listener.
async fn readiness(worker: &App, client: &Client) -> u16 {
    let line = worker.line("the worker's health and metrics listen");
    let address = line.rsplit("address=").next().unwrap().trim().to_owned();
    let worker = Client::new(&format!("http://{address}"), &client.key);
    send(worker.anonymous(reqwest::Method::GET, "/health/ready")).await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_garbage_fails_only_its_own_job() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("SIMULATED_LATENCY_MS", 900);
    let (_api, client) = cluster.serve();
    let worker = cluster.work();
    let other = client.with_key(&cluster.key("other", "admin"));
    let neighbour = other.create_running(json!({"image": "web:1"})).await;

    // The steps of this job take longer than the lease: it needs heartbeats, which carry the broken jobs' steps too.
    let long = other.post("/instances", json!({"image": "web:1"})).await.expect(202);
    let create = || async { client.post("/instances", json!({"image": "garbled/x:1"})).await.expect(202) };
    let broken = future::join_all((0..6).map(|_| create())).await;

    for answer in &broken {
        let job = client.wait_for_job(&answer.job()).await;
        assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("image_not_found")), "{job}");
        assert!(job["error"]["detail"].as_str().unwrap().starts_with("garbled/x:1: gone for  good"), "{job}");
        assert_clean(&job["error"]["detail"]);
        assert_clean(&job["steps"][0]["detail"]);
        let instance = client.get(&format!("/instances/{}", answer.instance())).await.body;
        assert_clean(&instance["status_reason"]["detail"]);
    }
    assert_eq!(other.wait_for_job(&long.job()).await["status"], "succeeded");
    let token = column(&cluster.sql().await, &long.job(), "lease_token").await;
    assert_eq!(token.as_deref(), Some("1"), "the job lost its lease");
    let neighbour = other.get(&format!("/instances/{}", neighbour["id"].as_str().unwrap())).await.body;
    assert_eq!(neighbour["status"], "running", "{neighbour}");
    assert_eq!(readiness(&worker, &client).await, 200);
}

/// Makes Postgres refuse updates of jobs of the image `poison/…` where `condition` holds, as it would refuse a text
/// that was not cleaned.
async fn refuse(cluster: &Cluster, condition: &str) {
    let trigger = format!(
        "create function refuse() returns trigger language plpgsql as $$ begin
           if {condition} and exists (select from instances i where i.id = new.instance_id and i.image like 'poison/%') then
             raise exception 'refused by the test';
           end if;
           return new;
         end $$;
         create trigger refuse before update on jobs for each row execute function refuse()"
    );
    cluster.sql().await.batch_execute(&trigger).await.unwrap();
}

/// Runs a job whose details are refused beside another tenant's that needs heartbeats, and returns both when they have
/// finished.
async fn poisoned_beside_another(condition: &str, latency_ms: u32) -> (Cluster, App, Value, Value) {
    let mut cluster = Cluster::simulated().await;
    cluster.set("SIMULATED_LATENCY_MS", latency_ms);
    refuse(&cluster, condition).await;
    let (_api, client) = cluster.serve();
    let worker = cluster.work();
    let other = client.with_key(&cluster.key("other", "admin"));
    let (poisoned, beside) = future::join(
        client.post("/instances", json!({"image": "poison/x:1"})),
        other.post("/instances", json!({"image": "web:1"})),
    )
    .await;
    let beside = other.wait_for_job(&beside.expect(202).job()).await;
    let poisoned = client.wait_for_job(&poisoned.expect(202).job()).await;
    (cluster, worker, poisoned, beside)
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_step_details_are_left_out_and_no_lease_is_lost() {
    let details = "(new.steps::text like '%poison%')";

    let (cluster, worker, poisoned, beside) = poisoned_beside_another(details, 900).await;

    let sql = cluster.sql().await;
    for job in [&poisoned, &beside] {
        assert_eq!((&job["status"], &job["crashes"]), (&json!("succeeded"), &json!(0)), "{job}");
        let token = column(&sql, job["id"].as_str().unwrap(), "lease_token").await;
        assert_eq!(token.as_deref(), Some("1"), "a lease was lost: {job}");
    }
    worker.line("heartbeat refused");
    assert_eq!(poisoned["steps"][0]["detail"], json!(null), "{poisoned}");
    assert_eq!(beside["steps"][0]["detail"], "web:1: simulated", "{beside}");
}

#[tokio::test(flavor = "multi_thread")]
async fn job_whose_heartbeats_are_refused_loses_only_its_lease() {
    let heartbeats = "(old.status = 'running' and new.status = 'running' and old.lease_token < 3)";

    // One step can take longer than a lease: the other job needs the heartbeats that both share, since between two
    // steps none is written for it alone.
    let (cluster, _worker, poisoned, beside) = poisoned_beside_another(heartbeats, 3000).await;

    assert_eq!((&beside["status"], &beside["crashes"]), (&json!("succeeded"), &json!(0)), "{beside}");
    let token = column(&cluster.sql().await, beside["id"].as_str().unwrap(), "lease_token").await;
    assert_eq!(token.as_deref(), Some("1"), "the other job lost its lease");
    assert_eq!((&poisoned["status"], &poisoned["crashes"]), (&json!("succeeded"), &json!(2)), "{poisoned}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_end_details_are_replaced_by_a_fixed_text() {
    let cluster = Cluster::simulated().await;
    let trigger = "create function refuse() returns trigger language plpgsql as $$ begin
                     if new.error::text like '%missing/%' or new.steps::text like '%missing/%' then
                       raise exception 'refused by the test';
                     end if;
                     return new;
                   end $$;
                   create trigger refuse before update on jobs for each row execute function refuse()";
    cluster.sql().await.batch_execute(trigger).await.unwrap();
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();

    let answer = client.post("/instances", json!({"image": "missing/x:1"})).await.expect(202);

    let job = client.wait_for_job(&answer.job()).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("image_not_found")), "{job}");
    assert_eq!(job["error"]["detail"], "the details could not be stored");
    let steps: Vec<_> = job["steps"].as_array().unwrap().iter().map(|step| (&step["name"], &step["detail"])).collect();
    assert_eq!(steps, [(&json!("image"), &json!(null)), (&json!("undo"), &json!(null))]);
    poll_until("its instance failed", Duration::from_secs(30), async || {
        let instance = client.get(&format!("/instances/{}", answer.instance())).await.body;
        (instance["status"] == "failed").then_some(())
    })
    .await;
}
