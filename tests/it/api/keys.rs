//! `/keys`: what a key may grant, that it is shown once, and that a revoked one is refused by all replicas at once.

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
async fn key_grants_only_scopes_that_it_has() {
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

    // No key outlives the key that created it.
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

    // An admin may create keys of other tenants; the new key belongs to that tenant.
    let (theirs, _) = key(&admin, json!({"name": "k", "scopes": ["instances:read"], "tenant_id": rival})).await;
    assert_eq!(theirs.get("/keys/self").await.expect(200).body["tenant_id"], rival.as_str());
    // The scope `admin` includes all others, so each of them can be granted.
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
async fn key_is_shown_once_and_refused_by_all_replicas_when_revoked() {
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

    // Ten times: once each replica has served it, the key is revoked through one and refused by both.
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
        // A repeated revocation has the same result, and the key is not listed any more.
        client.delete(&path).await.expect(204);
        assert!(!client.get("/keys").await.text.contains(made["id"].as_str().unwrap()));
    }
    // A key may also revoke itself, as its last request.
    let path = format!("/keys/{}", made["id"].as_str().unwrap());
    client.delete(&path).await.expect(204);
    problem(&client.delete(&path).await, "unauthenticated");
    problem(&replica.with_key(&client.key).get("/keys/self").await, "unauthenticated");
}

#[tokio::test(flavor = "multi_thread")]
async fn times_outside_the_years_1_to_9999_of_utc_are_refused() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();
    let body = |field: &str, time: &str| json!({"name": "k", "scopes": ["instances:read"], field: time});
    let (_, made) = key(&admin, body("expires_at", "2030-01-01T00:00:00Z")).await;
    let path = format!("/keys/{}", made["id"].as_str().unwrap());
    let patch = async |time: &str| send(admin.request(Method::PATCH, &path).json(&json!({"expires_at": time}))).await;

    for time in [
        "9999-12-31T23:59:59-01:00",
        "9999-12-31T23:59:59-00:01",
        "9999-12-31T00:01:00-23:59",
        "10000-01-01T00:00:00Z",
        "0000-12-31T23:59:59Z",
        "0001-01-01T00:00:00+00:01",
        "-0001-01-01T00:00:00Z",
    ] {
        for field in ["expires_at", "not_before"] {
            let answer = admin.post("/keys", body(field, time)).await;
            assert_eq!(problem(&answer, "validation_failed"), [format!("/{field}")], "{time}");
            assert_eq!(answer.body["errors"][0]["code"], "invalid", "{time}");
        }
        assert_eq!(problem(&patch(time).await, "validation_failed"), ["/expires_at"], "{time}");
    }
    assert_eq!(admin.get(&path).await.expect(200).body["expires_at"], "2030-01-01T00:00:00Z");

    // The first and the last moment are stored and returned like any other.
    for (time, shown) in [
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
        ("9999-12-31T23:59:59+23:59", "9999-12-31T00:00:59Z"),
    ] {
        let (far, made) = key(&admin, body("expires_at", time)).await;
        assert_eq!(made["expires_at"], shown);
        assert_eq!(far.get("/keys/self").await.expect(200).body["expires_at"], shown);
        assert_eq!(patch(time).await.expect(200).body["expires_at"], shown);
        let rotated =
            admin.post(&format!("/keys/{}/rotate", made["id"].as_str().unwrap()), json!({"grace_s": 60})).await;
        assert_eq!(rotated.expect(201).body["expires_at"], shown);
        key(&admin, body("not_before", time)).await;
    }
    key(&admin, body("not_before", "0001-01-01T00:00:00Z")).await.0.get("/instances").await.expect(200);
    admin.get("/keys").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn grace_is_whole_seconds_up_to_a_week() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();
    let made = async || {
        let (client, made) = key(&admin, json!({"name": "k", "scopes": ["instances:read"]})).await;
        (client, format!("/keys/{}/rotate", made["id"].as_str().unwrap()))
    };
    let (old, path) = made().await;

    for (body, pointer, code) in [
        (json!({"grace_s": 0.5}), "/grace_s", "invalid"),
        (json!({"grace_s": 1.0}), "/grace_s", "invalid"),
        (json!({"grace_s": -1}), "/grace_s", "out_of_range"),
        (json!({"grace_s": 604_801}), "/grace_s", "out_of_range"),
        (json!({"grace_s": i64::MAX}), "/grace_s", "out_of_range"),
        (json!({"grace_s": i64::MIN}), "/grace_s", "out_of_range"),
        (json!({"grace_s": u64::MAX}), "/grace_s", "invalid"),
        (json!({"grace_s": 1e300}), "/grace_s", "invalid"),
        (json!({"grace_s": "60"}), "/grace_s", "invalid"),
        (json!({"grace_s": true}), "/grace_s", "invalid"),
        (json!({"grace_s": [1]}), "/grace_s", "invalid"),
        (json!({"grace_s": 1, "grace": 1}), "/grace", "unknown_field"),
        (json!({"Grace_s": 1}), "/Grace_s", "unknown_field"),
        (json!([1]), "", "invalid"),
        (json!(null), "", "invalid"),
    ] {
        let answer = admin.post(&path, body.clone()).await;
        assert_eq!(problem(&answer, "validation_failed"), [pointer], "{body}");
        assert_eq!(answer.body["errors"][0]["code"], code, "{body}");
    }
    old.get("/instances").await.expect(200);

    for (body, accepted) in [
        (json!({}), false),
        (json!({"grace_s": null}), false),
        (json!({"grace_s": 0}), false),
        (json!({"grace_s": 604_800}), true),
    ] {
        let (old, path) = made().await;
        admin.post(&path, body.clone()).await.expect(201);
        assert_eq!(old.get("/instances").await.status, if accepted { 200 } else { 401 }, "{body}");
    }
}
