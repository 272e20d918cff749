//! `/keys`: what a key may grant, that it is shown once, and that a revoked one is refused everywhere at once.

use reqwest::Method;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use super::problem::problem;
use crate::support::{Client, Cluster, client::send, cluster::base_url};

fn from_now(seconds: i64) -> String {
    (OffsetDateTime::now_utc() + Duration::seconds(seconds)).format(&Rfc3339).unwrap()
}

async fn key(client: &Client, body: Value) -> (Client, Value) {
    let made = client.post("/keys", body).await.expect(201).body;
    (client.with_key(made["key"].as_str().unwrap()), made)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_grants_only_what_it_holds() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();
    let tenant = |client: &Client| {
        let client = client.clone();
        async move { client.get("/keys/self").await.expect(200).body["tenant_id"].as_str().unwrap().to_owned() }
    };
    let (own, rival) = (tenant(&admin).await, tenant(&admin.with_key(&cluster.key("rival", "admin"))).await);

    for (body, pointer) in [
        (json!({"name": "k", "scopes": []}), "/scopes"),
        (json!({"name": "k"}), "/scopes"),
        (json!({"name": "k", "scopes": null}), "/scopes"),
        (json!({"name": "k", "scopes": "admin"}), "/scopes"),
        (json!({"name": "k", "scopes": ["root"]}), "/scopes/0"),
        (json!({"name": "k", "scopes": ["admin", "Admin"]}), "/scopes/1"),
        (json!({"name": "k", "scopes": ["instances:*"]}), "/scopes/0"),
        (json!({"scopes": ["admin"]}), "/name"),
        (json!({"name": "", "scopes": ["admin"]}), "/name"),
        (json!({"name": "x".repeat(256), "scopes": ["admin"]}), "/name"),
        (json!({"name": "a\0b", "scopes": ["admin"]}), "/name"),
        (json!({"name": "k", "scopes": ["admin"], "expires_at": from_now(-1)}), "/expires_at"),
        (json!({"name": "k", "scopes": ["admin"], "expires_at": "tomorrow"}), "/expires_at"),
        (json!({"name": "k", "scopes": ["admin"], "expires_at": 1}), "/expires_at"),
        (json!({"name": "k", "scopes": ["admin"], "expires_at": "2030-01-01"}), "/expires_at"),
        (json!({"name": "k", "scopes": ["admin"], "tenant_id": "x"}), "/tenant_id"),
        (json!({"name": "k", "scopes": ["admin"], "tenant_id": uuid::Uuid::now_v7()}), "/tenant_id"),
        (json!({"name": "k", "scopes": ["admin"], "key": "mine"}), "/key"),
        (json!(["k", ["admin"], null, null]), ""),
    ] {
        assert_eq!(problem(&admin.post("/keys", body.clone()).await, "validation_failed"), [pointer], "{body}");
    }

    let (maker, _) =
        key(&admin, json!({"name": "maker", "scopes": ["keys:write", "keys:read", "instances:read"]})).await;
    for scopes in [json!(["admin"]), json!(["instances:write"]), json!(["instances:read", "networks:read"])] {
        problem(&maker.post("/keys", json!({"name": "k", "scopes": scopes})).await, "forbidden");
    }
    problem(&maker.post("/keys", json!({"name": "k", "scopes": ["keys:read"], "tenant_id": rival})).await, "forbidden");
    let (made, body) =
        key(&maker, json!({"name": "k", "scopes": ["instances:read", "instances:read"], "tenant_id": own})).await;
    assert_eq!(body["scopes"], json!(["instances:read"]));
    made.get("/instances").await.expect(200);

    // Nobody lives longer than who made it.
    let body = json!({"name": "mortal", "scopes": ["keys:write"], "expires_at": from_now(3600)});
    let (mortal, body) = key(&admin, body).await;
    let limit = body["expires_at"].as_str().unwrap().to_owned();
    for expires_at in [json!(null), json!(from_now(3700))] {
        let body = json!({"name": "k", "scopes": ["keys:write"], "expires_at": expires_at});
        problem(&mortal.post("/keys", body).await, "forbidden");
    }
    problem(&mortal.post("/keys", json!({"name": "k", "scopes": ["keys:write"]})).await, "forbidden");
    for expires_at in [&limit, &from_now(60)] {
        let (_, body) = key(&mortal, json!({"name": "k", "scopes": ["keys:write"], "expires_at": expires_at})).await;
        assert!(body["expires_at"].as_str().unwrap().ends_with('Z'), "{body}");
    }

    // An admin's reach to other tenants; the new key belongs there.
    let (theirs, _) = key(&admin, json!({"name": "k", "scopes": ["instances:read"], "tenant_id": rival})).await;
    assert_eq!(theirs.get("/keys/self").await.expect(200).body["tenant_id"], rival.as_str());
    // Held through `admin`, each other scope can be granted.
    let all = json!([
        "instances:read",
        "instances:write",
        "networks:read",
        "networks:write",
        "keys:read",
        "keys:write",
        "admin"
    ]);
    key(&admin, json!({"name": "k", "scopes": all})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_shown_once_and_after_its_revocation_refused_by_every_replica_at_once() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();
    let second = cluster.spawn("serve");
    let replica = Client::new(&base_url(&second), &admin.key);
    let (client, made) =
        key(&admin, json!({"name": "ci", "scopes": ["keys:read", "keys:write"], "expires_at": from_now(3600)})).await;
    let fields: Vec<&str> = made.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["expires_at", "id", "key", "name", "scopes", "tenant_id"]);

    // The same without the key itself.
    let mut shown = made.clone();
    let text = shown.as_object_mut().unwrap().remove("key").unwrap();
    assert_eq!(client.get("/keys/self").await.expect(200).body, shown);
    let list = client.get("/keys").await.expect(200);
    assert!(
        !list.text.contains(text.as_str().unwrap()) && !list.text.contains(&admin.key) && !list.text.contains("hash")
    );
    let items = list.body["items"].as_array().unwrap();
    let listed = items.iter().find(|item| item["id"] == made["id"]).unwrap();
    for (field, value) in shown.as_object().unwrap() {
        assert_eq!(listed[field], *value, "{field}");
    }
    assert_eq!(listed.get("key"), None);

    // Ten times: once each replica has served it, it is revoked through one and refused by both.
    for _ in 0..10 {
        let (here, made) = key(&admin, json!({"name": "short", "scopes": ["instances:read"]})).await;
        let there = replica.with_key(&here.key);
        here.get("/instances").await.expect(200);
        there.get("/instances").await.expect(200);
        let path = format!("/keys/{}", made["id"].as_str().unwrap());
        let revoked = send(client.request(Method::DELETE, &path)).await.expect(204);
        assert_eq!(revoked.text, "");
        problem(&there.get("/instances").await, "unauthenticated");
        problem(&here.get("/instances").await, "unauthenticated");
        // Again is the same; and it is listed no more.
        client.delete(&path).await.expect(204);
        assert!(!client.get("/keys").await.text.contains(made["id"].as_str().unwrap()));
    }
    // Also its own, as its last act.
    let path = format!("/keys/{}", made["id"].as_str().unwrap());
    client.delete(&path).await.expect(204);
    problem(&client.delete(&path).await, "unauthenticated");
    problem(&replica.with_key(&client.key).get("/keys/self").await, "unauthenticated");
}
