//! Grants of a change or a rotation: no more than the caller has, checked on the key as it is when the change is
//! written, not as it was read.

use reqwest::Method;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::suspension::blocked;
use crate::support::{Answer, Client, Cluster, client::send};

fn at(seconds: i64) -> String {
    (OffsetDateTime::now_utc() + time::Duration::seconds(seconds)).format(&Rfc3339).unwrap()
}

/// Creates a key, and returns its client and path.
async fn create_key(admin: &Client, body: Value) -> (Client, String) {
    let body = admin.post("/keys", body).await.expect(201).body;
    (admin.with_key(body["key"].as_str().unwrap()), format!("/keys/{}", body["id"].as_str().unwrap()))
}

async fn patch(client: &Client, path: &str, body: Value) -> Answer {
    send(client.request(Method::PATCH, path).json(&body)).await
}

#[track_caller]
fn assert_forbidden(answer: &Answer) {
    assert_eq!((answer.status, answer.code()), (403, "forbidden"), "{}", answer.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_key_is_revived_only_by_a_holder_of_its_scopes() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();

    let (writer, _) = create_key(&admin, json!({"name": "w", "scopes": ["keys:read", "keys:write"]})).await;
    let (mighty, path) = create_key(&admin, json!({"name": "m", "scopes": ["admin"]})).await;
    let expire =
        "update api_key set expires_at = now() - interval '1 s', ver = ver + 1, changed_at = now() where name = 'm'";
    assert_eq!(cluster.sql().await.execute(expire, &[]).await.unwrap(), 1);

    for expires_at in [json!(null), json!(at(3600))] {
        assert_forbidden(&patch(&writer, &path, json!({"expires_at": expires_at})).await);
    }
    mighty.get("/keys/self").await.expect(401);

    // A change that keeps only scopes which the caller has is allowed.
    let body = json!({"expires_at": null, "scopes": ["keys:read"]});
    patch(&writer, &path, body).await.expect(200);
    assert_eq!(mighty.get("/keys/self").await.expect(200).body["scopes"], json!(["keys:read"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn scopes_are_not_granted_beyond_the_callers_expiry_or_limit() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();

    let scopes = json!(["keys:read", "keys:write"]);
    let limits = json!({"rps": 1000, "burst": 1000});
    let (mortal, _) = create_key(&admin, json!({"name": "w", "scopes": scopes, "expires_at": at(3600)})).await;
    let (limited, _) = create_key(&admin, json!({"name": "l", "scopes": scopes, "limits": limits})).await;
    let (_, path) = create_key(&admin, json!({"name": "k", "scopes": ["instances:read"]})).await;
    for caller in [&mortal, &limited] {
        assert_forbidden(&patch(caller, &path, json!({"scopes": ["keys:read"]})).await);
    }
    let shown = admin.get(&path).await.expect(200).body;

    assert_eq!((&shown["scopes"], &shown["name"]), (&json!(["instances:read"]), &json!("k")));
    // Each caller succeeds with a change that stays within its own limits.
    patch(&mortal, &path, json!({"scopes": ["keys:read"], "expires_at": at(60)})).await.expect(200);

    let body = json!({"scopes": ["keys:write"], "limits": {"rps": 10, "burst": 10}});
    patch(&limited, &path, body).await.expect(200);
    // A higher limit is forbidden to a caller that expires before the key.
    patch(&admin, &path, json!({"expires_at": null})).await.expect(200);
    assert_forbidden(&patch(&mortal, &path, json!({"limits": {"rps": 20, "burst": 10}})).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn change_that_only_restricts_is_not_a_grant() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();

    let scopes = json!(["keys:read", "keys:write"]);
    let (mortal, _) = create_key(&admin, json!({"name": "w", "scopes": scopes, "expires_at": at(3600)})).await;
    let (mighty, path) = create_key(&admin, json!({"name": "m", "scopes": ["admin"]})).await;
    for body in [
        json!({"name": "n"}),
        json!({"limits": {"rps": 1000, "burst": 1000}}),
        json!({"expires_at": at(60)}),
        json!({"scopes": ["keys:read"]}),
    ] {
        patch(&mortal, &path, body).await.expect(200);
    }

    let left = mighty.get("/keys/self").await.expect(200).body;

    assert_eq!((&left["name"], &left["scopes"]), (&json!("n"), &json!(["keys:read"])));
}

/// Sends the request, and commits another change of the key between the request's authorization and its write.
async fn send_during_change(cluster: &Cluster, path: &str, sets: &str, request: reqwest::RequestBuilder) -> Answer {
    let (holder, sql) = (cluster.sql().await, cluster.sql().await);
    let id = path.trim_start_matches("/keys/");
    holder
        .batch_execute(&format!(
            "begin; update api_key set {sets}, ver = ver + 1, changed_at = clock_timestamp() where id = '{id}'"
        ))
        .await
        .unwrap();
    let answer = tokio::spawn(send(request));
    blocked(&sql, 1, || usize::from(answer.is_finished())).await;
    assert!(!answer.is_finished(), "it did not wait for the other change");
    holder.batch_execute("commit").await.unwrap();
    answer.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrently_changed_key_is_authorized_again() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();
    let (writer, _) = create_key(&admin, json!({"name": "w", "scopes": ["keys:read", "keys:write"]})).await;
    let key = json!({"name": "k", "scopes": ["keys:read"], "expires_at": at(3600)});
    let eternal = json!({"expires_at": null});

    let (_, path) = create_key(&admin, key.clone()).await;
    let rotate = writer.request(Method::POST, &format!("{path}/rotate")).json(&json!({}));
    assert_forbidden(&send_during_change(&cluster, &path, "scopes = '{admin}'", rotate).await);
    let shown = admin.get(&path).await.expect(200).body;
    assert_eq!((&shown["revoked_at"], &shown["scopes"]), (&Value::Null, &json!(["admin"])));

    let (_, path) = create_key(&admin, key.clone()).await;
    let change = writer.request(Method::PATCH, &path).json(&eternal);
    assert_forbidden(&send_during_change(&cluster, &path, "scopes = '{admin}'", change).await);
    assert_ne!(admin.get(&path).await.expect(200).body["expires_at"], Value::Null);

    // A change that is still allowed is made, and both changes stay.
    let (_, path) = create_key(&admin, key.clone()).await;
    let change = writer.request(Method::PATCH, &path).json(&eternal);
    let shown = send_during_change(&cluster, &path, "name = 'other'", change).await.expect(200).body;
    assert_eq!((&shown["name"], &shown["expires_at"]), (&json!("other"), &Value::Null));
    let rotate = writer.request(Method::POST, &format!("{path}/rotate")).json(&json!({}));
    let new = send_during_change(&cluster, &path, "name = 'another'", rotate).await.expect(201).body;
    assert_eq!(new["name"], "another");

    // A key that is revoked meanwhile cannot be changed.
    let (_, path) = create_key(&admin, key).await;
    let change = writer.request(Method::PATCH, &path).json(&eternal);
    let answer = send_during_change(&cluster, &path, "revoked_at = now()", change).await;
    assert_eq!((answer.status, answer.code()), (409, "invalid_state"), "{}", answer.text);
}

/// A newer release may know scopes that this one does not: here they grant nothing, and are not passed on.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_scope_of_a_key_grants_nothing_and_is_not_copied() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();
    let (writer, _) = create_key(&admin, json!({"name": "w", "scopes": ["keys:read", "keys:write"]})).await;
    let (_, known) = create_key(&admin, json!({"name": "known", "scopes": ["keys:read"]})).await;
    let (newer, path) = create_key(&admin, json!({"name": "newer", "scopes": ["keys:read"]})).await;
    let sql = cluster.sql().await;
    let add = "update api_key set scopes = scopes || '{volumes:write}', ver = ver + 1, changed_at = now() where name = 'newer'";

    assert_eq!(sql.execute(add, &[]).await.unwrap(), 1);

    // No cache has the key, since it was not used before.
    let own = newer.get("/keys/self").await.expect(200).body;
    assert_eq!(own["scopes"], json!(["keys:read"]));
    newer.get("/instances").await.expect(403);
    let list = writer.get("/keys").await.expect(200);
    let names: Vec<&str> =
        list.body["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"known") && !names.contains(&"newer"), "{names:?}");
    writer.get(&known).await.expect(200);
    for answer in [
        writer.get(&path).await,
        writer.post(&format!("{path}/rotate"), json!({})).await,
        patch(&writer, &path, json!({"name": "mine"})).await,
    ] {
        assert_eq!((answer.status, answer.code()), (500, "internal"), "{}", answer.text);
    }
    let keys: i64 =
        sql.query_one("select count(*) from api_key where 'volumes:write' = any(scopes)", &[]).await.unwrap().get(0);
    assert_eq!(keys, 1, "the rotation was refused");
    // It can always be revoked.
    writer.delete(&path).await.expect(204);
    newer.get("/keys/self").await.expect(401);
}
