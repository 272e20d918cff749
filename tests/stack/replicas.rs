//! Every replica of the API can serve every request.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::json;

use crate::{
    client::send,
    poll_until,
    stack::{Stack, demo_image},
};

/// So many requests that each of three replicas gets one, even if other clients send requests meanwhile.
const REQUESTS: usize = 9;

pub async fn requests_are_spread_evenly(stack: &Stack) {
    let count = 600;
    let request = |n: usize| async move {
        let get = stack.client.request(Method::GET, "/keys/self").header("X-Request-Id", format!("spread-{n}-"));
        send(get).await.expect(200);
    };
    for n in 0..count / 2 {
        request(n).await;
    }
    futures_util::future::join_all((count / 2..count).map(request)).await;
    // nginx logs a request after the response was sent, and Docker passes the line on later.
    poll_until(60, "all requests are in the log of nginx", async || {
        let logged = stack.served_by("spread-").len();
        if logged == count { Ok(()) } else { Err(logged) }
    })
    .await;
    let mut counts = BTreeMap::<String, usize>::new();
    for replica in stack.served_by("spread-") {
        *counts.entry(replica).or_default() += 1;
    }
    eprintln!("requests per replica: {counts:?}");
    assert_eq!(counts.len(), 3, "{counts:?}");
    assert!(counts.values().all(|count| (160..=240).contains(count)), "{counts:?}");
}

/// Sends `REQUESTS` requests and checks that all three replicas served some of them.
async fn send_to_all_replicas(stack: &Stack, id: &str, request: impl AsyncFn(usize, String)) {
    for n in 0..REQUESTS {
        request(n, format!("{id}-{n}-")).await;
    }
    let replicas: BTreeSet<String> = stack.served_by(&format!("{id}-")).into_iter().collect();
    assert_eq!(replicas.len(), 3, "{id}: {replicas:?}");
}

pub async fn every_replica_serves_every_request(stack: &Stack) {
    let client = &stack.client;
    // A key that was just created, which no replica has cached.
    let key = client.post("/keys", json!({"name": "fresh", "scopes": ["admin"]})).await.expect(201);
    let fresh = client.with_key(key.body["key"].as_str().unwrap());
    send_to_all_replicas(stack, "fresh", async |_, id| {
        send(fresh.request(Method::GET, "/keys/self").header("X-Request-Id", id)).await.expect(200);
    })
    .await;

    // Every replica returns the same instance for the same Idempotency-Key.
    let body = json!({"name": "once", "image": demo_image()});
    let first = client.request(Method::POST, "/instances").header("Idempotency-Key", "stack-once").json(&body);
    let first = send(first).await.expect(202);
    let instance = first.instance();
    send_to_all_replicas(stack, "once", async |_, id| {
        let again = client.request(Method::POST, "/instances").header("Idempotency-Key", "stack-once").json(&body);
        let again = send(again.header("X-Request-Id", id)).await.expect(202);
        assert_eq!((again.job(), again.instance()), (first.job(), instance.clone()));
        assert_eq!(again.header("Idempotent-Replayed"), "true");
    })
    .await;

    // Requests wait on all replicas for an instance that cannot run before the worker is started again.
    stack.compose(&["stop", "worker"]);
    let waited = client.post("/instances", json!({"name": "waited", "image": demo_image()})).await.instance();
    let waits = (0..REQUESTS).map(|n| {
        let path = format!("/instances/{waited}?wait=running&timeout=60");
        let wait = client.request(Method::GET, &path).header("X-Request-Id", format!("wait-{n}-"));
        async move { send(wait).await.expect(200).body["status"].clone() }
    });
    let waits = tokio::spawn(futures_util::future::join_all(waits.collect::<Vec<_>>()));
    // A read by id immediately after a write is current on every replica.
    client.delete(&format!("/instances/{instance}")).await.expect(202);
    send_to_all_replicas(stack, "current", async |_, id| {
        let show = client.request(Method::GET, &format!("/instances/{instance}")).header("X-Request-Id", id);
        assert_eq!(send(show).await.expect(200).body["status"], "deleting");
    })
    .await;
    assert!(!waits.is_finished() && stack.served_by("wait-").is_empty(), "the requests did not wait");
    stack.compose(&["start", "worker"]);
    for status in waits.await.unwrap() {
        assert_eq!(status, "running");
    }
    assert_eq!(stack.served_by("wait-").into_iter().collect::<BTreeSet<_>>().len(), 3);
    client.delete_fully(&waited).await;
    assert_eq!(client.wait_for(&instance, "deleted").await["status"], "deleted");

    // A new tenant writes through one replica. While the read replica replays nothing, all replicas list the write.
    let key = stack.key("newcomer");
    let newcomer = client.with_key(&key);
    stack.sql("replica", "select pg_wal_replay_pause()");
    let written = newcomer.post("/keys", json!({"name": "written", "scopes": ["admin"]})).await.expect(201).body;
    let written = written["id"].as_str().unwrap();
    send_to_all_replicas(stack, "listed", async |_, id| {
        let list = send(newcomer.request(Method::GET, "/keys").header("X-Request-Id", id)).await.expect(200);
        assert_eq!(list.body["items"][0]["id"], written, "{}", list.text);
    })
    .await;
    let stale = stack.sql("replica", &format!("select count(*) from api_key where id = '{written}'"));
    assert_eq!(stale, "0", "the read replica has the row, so the check shows nothing");
    stack.sql("replica", "select pg_wal_replay_resume()");

    // Pages that different replicas return contain together each key exactly once.
    for n in 0..REQUESTS {
        client.post("/keys", json!({"name": format!("page-{n}"), "scopes": ["admin"]})).await.expect(201);
    }
    let all = client.get("/keys?limit=500").await.expect(200);
    let ids = |body: &serde_json::Value| -> Vec<String> {
        body["items"].as_array().unwrap().iter().map(|key| key["id"].as_str().unwrap().to_owned()).collect()
    };
    let (mut paged, mut cursor, mut n) = (Vec::new(), String::new(), 0);
    loop {
        let page = client.request(Method::GET, &format!("/keys?limit=1&cursor={cursor}"));
        let page = send(page.header("X-Request-Id", format!("pages-{n}-"))).await.expect(200);
        paged.extend(ids(&page.body));
        n += 1;
        match page.body["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    assert_eq!(paged, ids(&all.body));
    assert_eq!(stack.served_by("pages-").into_iter().collect::<BTreeSet<_>>().len(), 3);
}

pub async fn every_replica_rejects_a_revoked_key(stack: &Stack) {
    let made = stack.client.post("/keys", json!({"name": "short", "scopes": ["keys:read"]})).await.expect(201);
    let short = stack.client.with_key(made.body["key"].as_str().unwrap());
    // Every replica caches the key.
    send_to_all_replicas(stack, "short", async |_, id| {
        send(short.request(Method::GET, "/keys/self").header("X-Request-Id", id)).await.expect(200);
    })
    .await;
    stack.client.delete(&format!("/keys/{}", made.body["id"].as_str().unwrap())).await.expect(204);
    send_to_all_replicas(stack, "revoked", async |_, id| {
        send(short.request(Method::GET, "/keys/self").header("X-Request-Id", id)).await.expect(401);
    })
    .await;
}
