//! `?wait=`: the response comes as soon as the state changes, and all waits together cost a few statements.

use std::time::{Duration, Instant};

use futures_util::future;
use reqwest::Method;
use serde_json::{Value, json};

use super::problem::problem;
use crate::support::{Client, Cluster, client::send, cluster::base_url, poll_until, proxy::Proxy};

/// Sends a GET, and returns the response and how long it took.
async fn timed(client: &Client, path: &str) -> (Value, Duration) {
    let started = Instant::now();
    let body = client.get(path).await.expect(200).body;
    (body, started.elapsed())
}

/// Waits until a request waits for an instance: only then does the process run this statement.
pub async fn somebody_waits(cluster: &Cluster) {
    let sql = cluster.sql().await;
    let waiting = "select count(*) from pg_stat_activity
                 where datname = current_database() and query like 'select id, status from instances%'";
    poll_until("a waiter", Duration::from_secs(60), async || {
        (sql.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) > 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_ends_on_status_impossibility_or_timeout() {
    // Much less than the 30 s and more that the wait may take.
    const SOON: Duration = Duration::from_secs(10);
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let made = client.post("/instances", json!({"image": "web:1"})).await;
    let (path, job_path) = (format!("/instances/{}", made.instance()), format!("/jobs/{}", made.job()));

    // No worker runs, so the wait times out.
    for path in [format!("{path}?wait=running&timeout=0.6"), format!("{job_path}?wait=true&timeout=0.6")] {
        let (body, took) = timed(&client, &path).await;
        assert!(["pending", "queued"].contains(&body["status"].as_str().unwrap()), "{body}");
        assert!((Duration::from_millis(600)..SOON).contains(&took), "{path}: {took:?}");
    }
    // A status that is reached already, one that cannot be reached without a request, or no wait at all.
    for query in [
        "?wait=pending&timeout=30",
        "?wait=deleted&timeout=30",
        "?wait=deleting",
        "?wait=running&timeout=0",
        "?timeout=30",
        "?wait=",
    ] {
        let (body, took) = timed(&client, &format!("{path}{query}")).await;
        assert!(body["status"] == "pending" && took < SOON, "{query}: {took:?}");
    }
    assert!(timed(&client, &format!("{job_path}?wait=false&timeout=30")).await.1 < SOON);
    for (path, query, pointer) in [
        (&path, "wait=ready", "?wait"),
        (&path, "wait=true", "?wait"),
        (&path, "timeout=-1", "?timeout"),
        (&path, "timeout=soon", "?timeout"),
        (&path, "timeout=inf", "?timeout"),
        (&path, "timeout=NaN", "?timeout"),
        (&job_path, "wait=running", "?wait"),
        (&job_path, "wait=1", "?wait"),
        (&job_path, "timeout=-1", "?timeout"),
    ] {
        assert_eq!(problem(&client.get(&format!("{path}?{query}")).await, "validation_failed"), [pointer], "{query}");
    }

    // Both waits begin before there is a worker; a timeout above the maximum is reduced, not refused.
    let waits = [format!("{path}?wait=running&timeout=1000"), format!("{job_path}?wait=true&timeout=60")];
    let spawn = |path: &String| {
        let (client, path) = (client.clone(), path.clone());
        tokio::spawn(async move { timed(&client, &path).await })
    };
    let waiting: Vec<_> = waits.iter().map(spawn).collect();
    somebody_waits(&cluster).await;
    let _worker = cluster.work();
    let ended: Vec<_> = future::join_all(waiting).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(ended.iter().map(|(body, _)| &body["status"]).collect::<Vec<_>>(), ["running", "succeeded"]);
    assert!(ended.iter().all(|(_, took)| *took < Duration::from_secs(30)), "{ended:?}");

    // A failed instance cannot run, and a deleted one is deleted: both responses come at once.
    let failing = client.post("/instances", json!({"image": "missing/x"})).await;
    let job = client.wait_for_job(&failing.job()).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("image_not_found")));
    let (body, took) = timed(&client, &format!("/instances/{}?wait=running", failing.instance())).await;
    assert!(body["status"] == "failed" && took < SOON, "{took:?}");
    // A wait for a status that becomes impossible ends, too.
    let (stopped, deleted) = future::join(timed(&client, &format!("{path}?wait=stopped&timeout=60")), async {
        client.delete(&path).await.expect(202);
        timed(&client, &format!("{path}?wait=deleted&timeout=60")).await
    })
    .await;
    assert!(["deleting", "deleted"].contains(&stopped.0["status"].as_str().unwrap()), "{stopped:?}");
    assert_eq!(deleted.0["status"], "deleted");
    assert!(stopped.1 < Duration::from_secs(30) && deleted.1 < Duration::from_secs(30));
    for query in ["?wait=running", "?wait=deleted", "?wait=pending", ""] {
        let (body, took) = timed(&client, &format!("{path}{query}")).await;
        assert!(body["status"] == "deleted" && took < SOON, "{query}: {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_for_what_only_a_request_causes_returns_at_once() {
    const TIMEOUT: Duration = Duration::from_millis(700);
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let never = ["pending", "provisioning", "stopping", "deleting", "deleted"];
    // For each policy: what a running instance may become by itself, and what it may not.
    for (policy, possible, impossible) in [
        ("no", &["stopped", "unknown"][..], &["starting", "failed"][..]),
        ("on_failure", &["stopped", "starting", "failed", "unknown"], &[]),
        ("always", &["starting", "failed", "unknown"], &["stopped"]),
    ] {
        let instance = client.create_running(json!({"image": "web:1", "restart_policy": policy})).await;
        let path = format!("/instances/{}", instance["id"].as_str().unwrap());
        let timed = async |status: &str, timeout: Duration| {
            timed(&client, &format!("{path}?wait={status}&timeout={}", timeout.as_secs_f64())).await
        };

        for status in possible {
            let (body, took) = timed(status, TIMEOUT).await;
            assert_eq!(body["status"], "running", "{policy}");
            assert!(took >= TIMEOUT, "{policy}: {status} was given up after {took:?}");
        }
        for status in never.iter().chain(impossible) {
            let (body, took) = timed(status, Duration::from_secs(20)).await;
            assert_eq!(body["status"], "running", "{policy}");
            assert!(took < Duration::from_secs(10), "{policy}: {status} was waited for: {took:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_waits_cost_few_statements_and_no_connection() {
    const WAITERS: usize = 200;
    const PATIENCE: Duration = Duration::from_secs(10);
    let mut cluster = Cluster::simulated().await;
    let key = cluster.key("acme", "admin");
    let direct = cluster.database_url.clone();
    let proxy = Proxy::start(&direct).await;
    cluster.database_url = proxy.url.clone();
    let api = cluster.spawn("serve");
    cluster.database_url = direct;
    let client = Client::new(&base_url(&api), &key);
    let mut instances = Vec::new();
    for _ in 0..20 {
        instances.push(client.post("/instances", json!({"image": "web:1"})).await.instance());
    }
    let waiters = async |timeout: &str| {
        let paths = instances.iter().cycle().map(|id| format!("/instances/{id}?wait=running&timeout={timeout}"));
        let waits = paths.take(WAITERS).map(|path| {
            let client = client.clone();
            tokio::spawn(async move { client.get(&path).await.expect(200).body["status"].clone() })
        });
        let statuses = future::join_all(waits.collect::<Vec<_>>()).await;
        statuses.into_iter().map(Result::unwrap).collect::<Vec<Value>>()
    };
    let (before, asking) = (proxy.round_trips(), Instant::now());
    let meanwhile = async {
        let begun = before + WAITERS as u64;
        poll_until("all waiters", PATIENCE, async || (proxy.round_trips() >= begun).then_some(())).await;
        // There are more waits than connections, and other requests are still served.
        let started = Instant::now();
        for _ in 0..5 {
            client.get("/instances").await.expect(200);
        }
        assert!(asking.elapsed() < PATIENCE, "the first waiters may be gone: this shows nothing");
        started.elapsed()
    };
    let (statuses, others) = future::join(waiters(&PATIENCE.as_secs().to_string()), meanwhile).await;
    let (round_trips, took) = (proxy.round_trips() - before, asking.elapsed());
    eprintln!("{WAITERS} waiters for {took:.1?}: {round_trips} round trips; five others took {others:.1?}");
    assert!(statuses.iter().all(|status| *status == "pending"), "{statuses:?}");
    assert!(others < Duration::from_millis(2500), "{others:?}");
    // One statement at the beginning (the instance; the key is cached); then one for all of them every 100 ms, and the
    // periodic ones of a process. If each wait queried at that rate, there would be 20 000.
    assert!(round_trips < WAITERS as u64 + 100 + 40 * took.as_secs(), "{round_trips} in {took:?}");

    // Every one of the waits gets a response.
    let (statuses, _worker) =
        future::join(waiters("60"), async { tokio::task::block_in_place(|| cluster.work()) }).await;
    assert!(statuses.iter().all(|status| *status == "running"), "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_instance_is_not_sent_again_and_head_sends_none() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let path = format!("/instances/{}", client.post("/instances", json!({"image": "web:1"})).await.instance());
    let first = client.get(&path).await.expect(200);
    let etag = first.header("etag").to_owned();
    assert!(etag.len() > 2 && etag.starts_with('"') && etag.ends_with('"'), "{etag}");
    let known = async |tags: &str| send(client.request(Method::GET, &path).header("If-None-Match", tags)).await;
    for tags in [etag.clone(), format!("W/{etag}"), format!("\"other\", {etag}"), "*".into()] {
        let answer = known(&tags).await.expect(304);
        assert_eq!((answer.header("etag"), answer.text.as_str()), (etag.as_str(), ""), "{tags}");
        assert!(!answer.header("x-request-id").is_empty());
    }
    for tags in ["\"other\"", "", "nonsense", &etag[1..]] {
        assert_eq!(known(tags).await.expect(200).body, first.body, "{tags}");
    }
    let head = send(client.request(Method::HEAD, &path)).await.expect(200);
    assert_eq!(
        (head.header("etag"), head.header("content-type"), head.text.as_str()),
        (etag.as_str(), "application/json", "")
    );
    for (path, status) in
        [("/instances", 200), ("/jobs", 200), ("/keys/self", 200), ("/health/ready", 200), ("/instances/x", 404)]
    {
        let head = send(client.request(Method::HEAD, path)).await.expect(status);
        assert_eq!(head.text, "", "{path}");
    }

    // When anything changes, the tag does.
    let _worker = cluster.work();
    let running = poll_until("another answer", Duration::from_secs(60), async || {
        let answer = known(&etag).await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert_ne!(running.header("etag"), etag);
    let deleted = client.delete(&path).await.expect(202);
    assert_ne!(deleted.body["instance"]["status"], "pending");
}
