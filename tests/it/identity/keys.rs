//! The routes of one key: show, change, rotate and revoke; which tenant's keys a caller reaches, what it may grant, and
//! which events are recorded.

use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::support::{Answer, Client, Cluster, client::send};

fn at(seconds: i64) -> String {
    (OffsetDateTime::now_utc() + time::Duration::seconds(seconds)).format(&Rfc3339).unwrap()
}

#[track_caller]
fn assert_refused(answer: &Answer, status: u16, code: &str, pointer: Option<&str>) {
    assert_eq!((answer.status, answer.code()), (status, code), "{}", answer.text);
    if let Some(pointer) = pointer {
        assert_eq!(answer.body["errors"][0]["pointer"], pointer, "{}", answer.text);
    }
}

/// Creates a key of the caller's tenant, and returns its text and its path.
async fn create_key(client: &Client, body: Value) -> (String, String) {
    let body = client.post("/keys", body).await.expect(201).body;
    (body["key"].as_str().unwrap().to_owned(), format!("/keys/{}", body["id"].as_str().unwrap()))
}

async fn patch(client: &Client, path: &str, body: Value) -> Answer {
    send(client.request(Method::PATCH, path).json(&body)).await
}

async fn rotate(client: &Client, path: &str, body: Value) -> Answer {
    client.post(&format!("{path}/rotate"), body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn key_is_shown_without_its_secret_before_and_after_revoke() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();

    let expires = at(3600);
    let (text, path) = create_key(&admin, json!({"name": "ci", "scopes": ["keys:read"], "expires_at": expires})).await;
    let shown = admin.get(&path).await.expect(200);
    assert_eq!(shown.body["name"], "ci");
    assert_eq!(shown.body["scopes"], json!(["keys:read"]));
    assert_eq!(shown.body["revoked_at"], Value::Null);
    assert!(shown.body["hint"].as_str().unwrap().ends_with(&text[52..]));
    assert!(!shown.text.contains(&text), "the key is shown only when it is created");
    admin.delete(&path).await.expect(204);

    let shown = admin.get(&path).await.expect(200).body;
    assert_ne!(shown["revoked_at"], Value::Null);

    let listed = admin.get("/keys").await.expect(200).body;
    assert!(
        listed["items"].as_array().unwrap().iter().all(|key| path != format!("/keys/{}", key["id"].as_str().unwrap()))
    );
    admin.delete(&path).await.expect(204);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_tenants_key_is_not_found_and_unchanged() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();

    let (text, path) = create_key(&admin, json!({"name": "ours", "scopes": ["keys:read"]})).await;
    let theirs = cluster.run(&[
        "keys",
        "create",
        "--tenant",
        "rival",
        "--name",
        "r",
        "--scope",
        "keys:read",
        "--scope",
        "keys:write",
    ]);
    let rival = admin.with_key(theirs.trim_end());

    for answer in [
        rival.get(&path).await,
        patch(&rival, &path, json!({"name": "x"})).await,
        patch(&rival, &path, json!({"nonsense": true})).await,
        rotate(&rival, &path, json!({})).await,
        rival.delete(&path).await,
        rival.delete(&format!("{path}?wait=perhaps")).await,
    ] {
        assert_refused(&answer, 404, "not_found", None);
    }

    admin.with_key(&text).get("/keys/self").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_change_sets_named_fields_and_applies_when_answered() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();

    let body = json!({"name": "a", "scopes": ["keys:read", "instances:read"], "expires_at": at(3600)});
    let (text, path) = create_key(&admin, body).await;
    let user = admin.with_key(&text);
    user.get("/instances").await.expect(200);

    let shown = patch(&admin, &path, json!({"name": "b"})).await.expect(200).body;
    assert_eq!((&shown["name"], &shown["scopes"]), (&json!("b"), &json!(["instances:read", "keys:read"])));
    assert_ne!(shown["expires_at"], Value::Null, "what is absent stays");

    let shown = patch(&admin, &path, json!({"expires_at": null})).await.expect(200).body;
    assert_eq!(shown["expires_at"], Value::Null, "null removes the expiry");
    patch(&admin, &path, json!({"scopes": ["keys:read"]})).await.expect(200);
    assert_refused(&user.get("/instances").await, 403, "forbidden", None);

    let myself = user.get("/keys/self").await.expect(200).body;
    assert_eq!((&myself["name"], &myself["scopes"]), (&json!("b"), &json!(["keys:read"])));
    patch(&admin, &path, json!({"scopes": ["keys:read", "instances:read"]})).await.expect(200);
    user.get("/instances").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_or_excessive_key_changes_are_refused() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();

    let (_, path) = create_key(&admin, json!({"name": "a", "scopes": ["keys:read"]})).await;
    for (body, pointer) in [
        (json!({"name": " "}), "/name"),
        (json!({"name": "n".repeat(256)}), "/name"),
        (json!({"scopes": []}), "/scopes"),
        (json!({"scopes": ["keys:read", "root"]}), "/scopes/1"),
        (json!({"expires_at": at(-5)}), "/expires_at"),
    ] {
        assert_refused(&patch(&admin, &path, body).await, 422, "validation_failed", Some(pointer));
    }
    for grace in [-1.0, 604_801.0] {
        let answer = rotate(&admin, &path, json!({"grace_s": grace})).await;
        assert_refused(&answer, 422, "validation_failed", Some("/grace_s"));
    }

    assert_refused(&admin.delete(&format!("{path}?wait=perhaps")).await, 422, "validation_failed", None);

    let writer = json!({"name": "w", "scopes": ["keys:read", "keys:write"], "expires_at": at(3600)});
    let writer = admin.with_key(&create_key(&admin, writer).await.0);
    assert_refused(&patch(&writer, &path, json!({"scopes": ["instances:read"]})).await, 403, "forbidden", None);
    assert_refused(&patch(&writer, &path, json!({"expires_at": at(7200)})).await, 403, "forbidden", None);
    assert_refused(&patch(&writer, &path, json!({"expires_at": null})).await, 403, "forbidden", None);

    let (_, mighty) = create_key(&admin, json!({"name": "m", "scopes": ["admin"]})).await;
    assert_refused(&rotate(&writer, &mighty, json!({})).await, 403, "forbidden", None);
    assert_eq!(admin.get(&mighty).await.expect(200).body["revoked_at"], Value::Null, "the key was rotated");
    assert_eq!(admin.get(&path).await.expect(200).body["name"], "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_of_a_longer_lived_key_is_forbidden() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();
    let (_, eternal) = create_key(&admin, json!({"name": "eternal", "scopes": ["keys:read"]})).await;
    let body = json!({"name": "w", "scopes": ["keys:read", "keys:write"], "expires_at": at(3600)});
    let mortal = admin.with_key(&create_key(&admin, body).await.0);
    assert_refused(&rotate(&mortal, &eternal, json!({})).await, 403, "forbidden", None);
}

#[tokio::test(flavor = "multi_thread")]
async fn rotated_key_ends_at_once_or_after_its_grace() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();
    let body = json!({"name": "ci", "scopes": ["keys:read"], "expires_at": at(3600)});
    let (old, path) = create_key(&admin, body).await;
    admin.with_key(&old).get("/keys/self").await.expect(200);
    let answer = rotate(&admin, &path, json!({})).await.expect(201);
    assert_eq!(answer.header("cache-control"), "no-store");
    let new = admin.with_key(answer.body["key"].as_str().unwrap());
    assert_refused(&admin.with_key(&old).get("/keys/self").await, 401, "unauthenticated", None);
    let myself = new.get("/keys/self").await.expect(200).body;
    assert_eq!((&myself["name"], &myself["scopes"]), (&json!("ci"), &json!(["keys:read"])));
    assert_ne!(myself["expires_at"], Value::Null);
    assert_ne!(format!("/keys/{}", myself["id"].as_str().unwrap()), path);

    let path = format!("/keys/{}", myself["id"].as_str().unwrap());
    let answer = rotate(&admin, &path, json!({"grace_s": 600})).await.expect(201);
    new.get("/keys/self").await.expect(200);
    admin.with_key(answer.body["key"].as_str().unwrap()).get("/keys/self").await.expect(200);
    let left = admin.get(&path).await.expect(200).body;
    let ends = OffsetDateTime::parse(left["expires_at"].as_str().unwrap(), &Rfc3339).unwrap();
    assert!((ends - OffsetDateTime::now_utc() - time::Duration::seconds(600)).abs() < time::Duration::seconds(60));
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_key_is_immutable_and_expired_key_cannot_rotate() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();

    let (_, revoked) = create_key(&admin, json!({"name": "r", "scopes": ["keys:read"]})).await;
    admin.delete(&revoked).await.expect(204);
    assert_refused(&patch(&admin, &revoked, json!({"name": "x"})).await, 409, "invalid_state", None);
    assert_refused(&rotate(&admin, &revoked, json!({})).await, 409, "invalid_state", None);

    let (text, expired) = create_key(&admin, json!({"name": "e", "scopes": ["keys:read"]})).await;
    admin.with_key(&text).get("/keys/self").await.expect(200);

    let sql = cluster.sql().await;
    sql.execute(
        "update api_key set expires_at = now() - interval '1 s', ver = ver + 1, changed_at = now() where name = 'e'",
        &[],
    )
    .await
    .unwrap();

    assert_refused(&rotate(&admin, &expired, json!({})).await, 409, "invalid_state", None);
    // An expired key can be extended.
    patch(&admin, &expired, json!({"expires_at": at(3600)})).await.expect(200);
    admin.with_key(&text).get("/keys/self").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_changes_are_recorded_as_events_with_their_author() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();

    let by = admin.get("/keys/self").await.expect(200).body["id"].as_str().unwrap().to_owned();
    let (_, path) = create_key(&admin, json!({"name": "a", "scopes": ["keys:read"]})).await;
    let limits = json!({"rps": 5.0, "burst": 50});
    let change = json!({"name": "b", "scopes": ["keys:write"], "expires_at": "2100-01-01T00:00:00Z", "limits": limits});
    patch(&admin, &path, change).await.expect(200);

    let new = rotate(&admin, &path, json!({"grace_s": 60})).await.expect(201).body;
    admin.delete(&path).await.expect(204);
    admin.delete(&path).await.expect(204);

    cluster.run(&["tenants", "suspend", "--tenant", "acme"]);
    cluster.run(&["tenants", "resume", "--tenant", "acme"]);
    let id = path.strip_prefix("/keys/").unwrap();
    let rows = cluster
        .sql()
        .await
        .query(
            "select kind, detail from events where detail ->> 'key_id' = $1 or kind like 'tenant.%' order by id",
            &[&id],
        )
        .await
        .unwrap();
    let kinds: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    let expected = ["key.created", "key.changed", "key.rotated", "key.revoked", "tenant.suspended", "tenant.resumed"];

    assert_eq!(kinds, expected, "a request that changed nothing was recorded");

    for row in &rows[..4] {
        assert_eq!(row.get::<_, Value>(1)["by"], by.as_str());
    }
    assert_eq!(rows[2].get::<_, Value>(1)["new_key_id"], new["id"]);

    let changed: Value = rows[1].get(1);
    let was = json!({"name": "a", "scopes": ["keys:read"], "expires_at": null, "limits": {}});
    assert_eq!(changed["was"], was);

    let is = ["name", "scopes", "limits"].map(|field| &changed[field]);
    assert_eq!(is, [&json!("b"), &json!(["keys:write"]), &limits]);
    assert!(changed["expires_at"].as_str().unwrap().starts_with("2100-01-01T00:00:00"), "{changed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn last_use_is_recorded_when_the_process_ends() {
    let cluster = Cluster::simulated().await;
    let (api, admin) = cluster.serve();

    let (text, path) = create_key(&admin, json!({"name": "used", "scopes": ["keys:read"]})).await;
    let (_, idle) = create_key(&admin, json!({"name": "idle", "scopes": ["keys:read"]})).await;
    for _ in 0..7 {
        admin.with_key(&text).get("/keys/self").await.expect(200);
    }
    assert_refused(&admin.with_key(&text).get("/instances").await, 403, "forbidden", None);
    assert!(api.terminate().success());

    let row = cluster
        .sql()
        .await
        .query_one("select u.n from api_key_usage u join api_key k on k.id = u.key_id where k.name = 'used'", &[])
        .await
        .unwrap();

    assert_eq!(row.get::<_, i64>(0), 8);

    let (_api, admin) = cluster.serve();
    let shown = admin.get(&path).await.expect(200).body;
    let used = OffsetDateTime::parse(shown["last_used_at"].as_str().unwrap(), &Rfc3339).unwrap();
    assert!(OffsetDateTime::now_utc() - used < Duration::from_secs(60));
    assert_eq!(admin.get(&idle).await.expect(200).body["last_used_at"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_process_loses_only_usage_counts() {
    let cluster = Cluster::simulated().await;
    let (api, admin) = cluster.serve();

    let (text, path) = create_key(&admin, json!({"name": "used", "scopes": ["keys:read"]})).await;
    admin.with_key(&text).get("/keys/self").await.expect(200);

    api.signal(Signal::SIGKILL);
    drop(api);
    let (_api, admin) = cluster.serve();
    admin.with_key(&text).get("/keys/self").await.expect(200);
    admin.delete(&path).await.expect(204);
    assert_refused(&admin.with_key(&text).get("/keys/self").await, 401, "unauthenticated", None);
}
