//! Any request of a client may hit any replica.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::json;

use crate::{
    client::send,
    eventually,
    stack::{Stack, demo_image},
};

/// Requests enough that each of three replicas has its turn, however many others ask meanwhile.
const TURNS: usize = 9;

pub async fn requests_are_spread_evenly(stack: &Stack) {
    let count = 600;
    let ask = |n: usize| async move {
        let request = stack.client.request(Method::GET, "/keys/self").header("X-Request-Id", format!("spread-{n}-"));
        send(request).await.expect(200);
    };
    for n in 0..count / 2 {
        ask(n).await;
    }
    futures_util::future::join_all((count / 2..count).map(ask)).await;
    // A line is logged when its answer is out, and takes its way through Docker.
    eventually(60, "all of them in nginx's log", async || {
        let logged = stack.asked("spread-").len();
        if logged == count { Ok(()) } else { Err(logged) }
    })
    .await;
    let mut counts = BTreeMap::<String, usize>::new();
    for replica in stack.asked("spread-") {
        *counts.entry(replica).or_default() += 1;
    }
    eprintln!("requests per replica: {counts:?}");
    assert_eq!(counts.len(), 3, "{counts:?}");
    assert!(counts.values().all(|count| (160..=240).contains(count)), "{counts:?}");
}

/// Sends one request per turn and demands that all three replicas were among those that answered.
async fn on_all(stack: &Stack, id: &str, ask: impl AsyncFn(usize, String)) {
    for n in 0..TURNS {
        ask(n, format!("{id}-{n}-")).await;
    }
    let asked: BTreeSet<String> = stack.asked(&format!("{id}-")).into_iter().collect();
    assert_eq!(asked.len(), 3, "{id}: {asked:?}");
}

pub async fn any_replica_may_be_asked_anything(stack: &Stack) {
    let client = &stack.client;
    // A key that was just made, which nobody has cached.
    let key = client.post("/keys", json!({"name": "fresh", "scopes": ["admin"]})).await.expect(201);
    let fresh = client.with_key(key.body["key"].as_str().unwrap());
    on_all(stack, "fresh", async |_, id| {
        send(fresh.request(Method::GET, "/keys/self").header("X-Request-Id", id)).await.expect(200);
    })
    .await;

    // One Idempotency-Key: one instance, whoever is asked.
    let body = json!({"name": "once", "image": demo_image()});
    let first = client.request(Method::POST, "/instances").header("Idempotency-Key", "stack-once").json(&body);
    let first = send(first).await.expect(202);
    let instance = first.instance();
    on_all(stack, "once", async |_, id| {
        let again = client.request(Method::POST, "/instances").header("Idempotency-Key", "stack-once").json(&body);
        let again = send(again.header("X-Request-Id", id)).await.expect(202);
        assert_eq!((again.job(), again.instance()), (first.job(), instance.clone()));
        assert_eq!(again.header("Idempotent-Replayed"), "true");
    })
    .await;

    // Waits, on all replicas at once, for what none of them does; the worker has to be there for it.
    stack.compose(&["stop", "worker"]);
    let waited = client.post("/instances", json!({"name": "waited", "image": demo_image()})).await.instance();
    let waits = (0..TURNS).map(|n| {
        let path = format!("/instances/{waited}?wait=running&timeout=60");
        let wait = client.request(Method::GET, &path).header("X-Request-Id", format!("wait-{n}-"));
        async move { send(wait).await.expect(200).body["status"].clone() }
    });
    let waits = tokio::spawn(futures_util::future::join_all(waits.collect::<Vec<_>>()));
    // Immediately after a write, by id: current everywhere.
    client.delete(&format!("/instances/{instance}")).await.expect(202);
    on_all(stack, "current", async |_, id| {
        let show = client.request(Method::GET, &format!("/instances/{instance}")).header("X-Request-Id", id);
        assert_eq!(send(show).await.expect(200).body["status"], "deleting");
    })
    .await;
    assert!(!waits.is_finished() && stack.asked("wait-").is_empty(), "nobody waited");
    stack.compose(&["start", "worker"]);
    for status in waits.await.unwrap() {
        assert_eq!(status, "running");
    }
    assert_eq!(stack.asked("wait-").into_iter().collect::<BTreeSet<_>>().len(), 3);
    client.delete_fully(&waited).await;
    assert_eq!(client.wait_for(&instance, "deleted").await["status"], "deleted");

    // One write of a tenant that nobody has heard of, by one replica; its lists by all, while the read replica stands still.
    let key = stack.key("newcomer");
    let newcomer = client.with_key(&key);
    stack.sql("replica", "select pg_wal_replay_pause()");
    let written = newcomer.post("/keys", json!({"name": "written", "scopes": ["admin"]})).await.expect(201).body;
    let written = written["id"].as_str().unwrap();
    on_all(stack, "listed", async |_, id| {
        let list = send(newcomer.request(Method::GET, "/keys").header("X-Request-Id", id)).await.expect(200);
        assert_eq!(list.body["items"][0]["id"], written, "{}", list.text);
    })
    .await;
    let stale = stack.sql("replica", &format!("select count(*) from api_key where id = '{written}'"));
    assert_eq!(stale, "0", "the read replica did not stand still: nothing was shown");
    stack.sql("replica", "select pg_wal_replay_resume()");

    // Pages: each from whichever replica, together each key exactly once.
    for n in 0..TURNS {
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
    assert_eq!(stack.asked("pages-").into_iter().collect::<BTreeSet<_>>().len(), 3);
}

pub async fn a_revoked_key_is_refused_by_all(stack: &Stack) {
    let made = stack.client.post("/keys", json!({"name": "short", "scopes": ["keys:read"]})).await.expect(201);
    let short = stack.client.with_key(made.body["key"].as_str().unwrap());
    // In every replica's memory.
    on_all(stack, "short", async |_, id| {
        send(short.request(Method::GET, "/keys/self").header("X-Request-Id", id)).await.expect(200);
    })
    .await;
    stack.client.delete(&format!("/keys/{}", made.body["id"].as_str().unwrap())).await.expect(204);
    on_all(stack, "revoked", async |_, id| {
        send(short.request(Method::GET, "/keys/self").header("X-Request-Id", id)).await.expect(401);
    })
    .await;
}
