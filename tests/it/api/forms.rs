//! Different spellings of one thing: ids in any case, `null` for an absent field, and paths with percent-encoding.

use reqwest::Method;
use serde_json::{Value, json};

use super::problem::problem;
use crate::support::{Answer, Client, Cluster, client::send};

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// Returns a path whose last letters or digits are percent-encoded, which does not change its meaning.
fn encoded(path: &str) -> String {
    let (kept, last) = path.split_at(path.len() - 3);
    last.bytes().fold(kept.to_owned(), |path, byte| format!("{path}%{byte:02X}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_accepted_in_any_case() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let first = client.create_running(json!({"image": "web:1"})).await;
    let (network, host) = (text(&first["network"]["id"]), text(&first["host"]["id"]));

    let body = json!({"image": "web:1", "network": network.to_uppercase(), "placement": {"host": host.to_uppercase()}});
    let second = client.create_running(body).await;

    assert_eq!((&second["network"]["id"], &second["host"]["id"]), (&json!(network), &json!(host)));
    assert_eq!(second["placement"], json!({"host": host}));
    let myself = client.get("/keys/self").await.expect(200).body;
    let tenant = json!({"name": "k", "scopes": ["admin"], "tenant_id": text(&myself["tenant_id"]).to_uppercase()});
    assert_eq!(client.post("/keys", tenant).await.expect(201).body["tenant_id"], myself["tenant_id"]);
    for (noun, id) in [
        ("instances", &second["id"]),
        ("jobs", &second["job_id"]),
        ("networks", &second["network"]["id"]),
        ("keys", &myself["id"]),
    ] {
        for path in [format!("/{noun}/{}", text(id).to_uppercase()), encoded(&format!("/{noun}/{}", text(id)))] {
            assert_eq!(client.get(&path).await.expect(200).body["id"], *id, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn null_counts_as_absent() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let nulls = json!({
        "name": null, "image": "web:1", "command": null, "env": null, "cpu_millis": null, "memory_mib": null,
        "network": null, "ports": null, "labels": null, "restart_policy": null, "placement": null,
    });

    let with_nulls = client.post("/instances", nulls).await.expect(202).body["instance"].clone();
    let without = client.post("/instances", json!({"image": "web:1"})).await.expect(202).body["instance"].clone();

    for field in ["command", "env", "cpu_millis", "memory_mib", "ports", "labels", "restart_policy", "placement"] {
        assert_eq!(with_nulls[field], without[field], "{field}");
    }
    let inner = json!({
        "image": "web:1", "ports": [{"container": 80, "host": null, "protocol": null}],
        "placement": {"host": null, "labels": null},
    });
    client.post("/instances", inner).await.expect(202);
    let key = json!({
        "name": "k", "scopes": ["admin"], "not_before": null, "expires_at": null, "tenant_id": null, "limits": null,
    });
    client.post("/keys", key).await.expect(201);
    // A required field counts as missing then.
    assert_eq!(problem(&client.post("/instances", json!({"image": null})).await, "validation_failed"), ["/image"]);
}

async fn with_key(client: &Client, method: Method, path: &str, body: Option<Value>) -> Answer {
    let request = client.request(method, path).header("Idempotency-Key", "k");
    send(body.iter().fold(request, |request, body| request.json(body))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_key_holds_for_each_spelling_of_a_path() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let replayed = |answer: &Answer| answer.header("idempotent-replayed") == "true";
    let body = Some(json!({"image": "web:1"}));
    let first = with_key(&client, Method::POST, "/instances", body.clone()).await;
    let again = with_key(&client, Method::POST, &encoded("/instances"), body.clone()).await;
    assert_eq!((again.instance(), again.job(), replayed(&again)), (first.instance(), first.job(), true));
    for other in ["//instances", "/instances/", "/instances//", "/INSTANCES"] {
        problem(&with_key(&client, Method::POST, other, body.clone()).await, "not_found");
    }

    let key = client.post("/keys", json!({"name": "k", "scopes": ["admin"]})).await.expect(201).body;
    let key = format!("/keys/{}", text(&key["id"]));
    for (method, path, body) in [
        (Method::DELETE, format!("/instances/{}", first.instance()), None),
        (Method::PATCH, key.clone(), Some(json!({"name": "other"}))),
        (Method::POST, format!("{key}/rotate"), Some(json!({"grace_s": 60}))),
    ] {
        let first = with_key(&client, method.clone(), &path, body.clone()).await;
        assert!((200..300).contains(&first.status) && !replayed(&first), "{path}: {}", first.text);
        let id = path.split('/').nth(2).unwrap();
        for path in [path.replace(id, &id.to_uppercase()), encoded(&path), path.replace(id, &encoded(id))] {
            let again = with_key(&client, method.clone(), &path, body.clone()).await;
            assert_eq!((again.status, replayed(&again)), (first.status, true), "{method} {path}: {}", again.text);
            assert_eq!(again.body["key"], first.body["key"], "{path}");
        }
    }
}
