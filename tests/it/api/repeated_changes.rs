//! `Idempotency-Key` on changes of a key: a repeated rotation rotates once, and a repeated change undoes no change of
//! another caller.

use std::collections::HashSet;

use futures_util::future;
use reqwest::Method;
use serde_json::{Value, json};

use super::problem::problem;
use crate::support::{Answer, Client, Cluster, client::send, cluster::base_url};

async fn submit(client: &Client, method: Method, path: &str, key: &str, body: &Value) -> Answer {
    send(client.request(method, path).header("Idempotency-Key", key).json(body)).await
}

fn replayed(answer: &Answer) -> bool {
    answer.header("idempotent-replayed") == "true"
}

/// Creates a key, and returns its text and its path.
async fn made(client: &Client) -> (String, String) {
    let body = client.post("/keys", json!({"name": "ci", "scopes": ["keys:read"]})).await.expect(201).body;
    (body["key"].as_str().unwrap().to_owned(), format!("/keys/{}", body["id"].as_str().unwrap()))
}

async fn events(sql: &tokio_postgres::Client, kind: &str) -> i64 {
    sql.query_one("select count(*) from events where kind = $1", &[&kind]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_rotation_rotates_once_and_shows_the_same_key() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();

    let other = cluster.spawn("serve");
    let clients = [client.clone(), Client::new(&base_url(&other), &client.key)];
    let sql = cluster.sql().await;

    // With a grace the old key stays valid, and nothing else would stop a second rotation.
    for (n, grace) in [0, 60].into_iter().enumerate() {
        let (old, path) = made(&client).await;
        let (rotate, body) = (format!("{path}/rotate"), json!({"grace_s": grace}));
        let answers =
            future::join_all((0..20).map(|n| submit(&clients[n % 2], Method::POST, &rotate, "r", &body))).await;
        let first = answers[0].body.clone();
        for answer in &answers {
            assert_eq!((answer.status, &answer.body), (201, &first), "{}", answer.text);
            assert_eq!(answer.header("cache-control"), "no-store");
        }
        assert_eq!(answers.iter().filter(|answer| !replayed(answer)).count(), 1);
        assert_eq!(events(&sql, "key.rotated").await, i64::try_from(n).unwrap() + 1);
        let of = "select count(*) from api_key where rotated_from = $1::text::uuid";
        let id = path.trim_start_matches("/keys/");
        assert_eq!(sql.query_one(of, &[&id]).await.unwrap().get::<_, i64>(0), 1);
        // Also later; the new key is the same, and the old one ends with its grace.
        let late = submit(&client, Method::POST, &rotate, "r", &body).await.expect(201);
        assert!(replayed(&late) && late.body == first);
        let new = client.with_key(first["key"].as_str().unwrap()).get("/keys/self").await.expect(200).body;
        assert_eq!(new["id"], first["id"]);
        client.with_key(&old).get("/keys/self").await.expect(if grace == 0 { 401 } else { 200 });
        // Another body is another request; another idempotency key is another rotation, if the key can still be
        // rotated.
        let reused = submit(&client, Method::POST, &rotate, "r", &json!({"grace_s": grace + 1})).await;
        problem(&reused, "idempotency_key_reused");
        let again = submit(&client, Method::POST, &rotate, "s", &body).await;
        if grace == 0 {
            problem(&again, "invalid_state");
        } else {
            assert!(!replayed(&again) && again.expect(201).body["key"] != first["key"]);
        }
    }
}

/// The control: without the header each request is a rotation.
#[tokio::test(flavor = "multi_thread")]
async fn rotation_repeated_without_the_header_rotates_again() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let (_, path) = made(&client).await;
    let rotate = async || client.post(&format!("{path}/rotate"), json!({"grace_s": 60})).await.expect(201).body;
    let keys: HashSet<String> = [rotate().await, rotate().await].map(|body| body["key"].to_string()).into();
    assert_eq!(keys.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_change_does_not_undo_later_changes() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let sql = cluster.sql().await;

    let (_, path) = made(&client).await;
    let body = json!({"name": "one"});
    let answers = future::join_all((0..10).map(|_| submit(&client, Method::PATCH, &path, "p", &body))).await;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body["name"] == "one"));
    assert_eq!(answers.iter().filter(|answer| !replayed(answer)).count(), 1);
    assert_eq!(events(&sql, "key.changed").await, 1);

    let two = submit(&client, Method::PATCH, &path, "q", &json!({"name": "two"})).await.expect(200);
    assert!(!replayed(&two));

    let late = submit(&client, Method::PATCH, &path, "p", &body).await.expect(200);
    assert!(replayed(&late));
    assert_eq!(late.body["name"], "two", "a replay shows the present state");

    problem(&submit(&client, Method::PATCH, &path, "p", &json!({"name": "x"})).await, "idempotency_key_reused");
    // Refused requests are not recorded.
    problem(&submit(&client, Method::PATCH, &path, "v", &json!({"name": ""})).await, "validation_failed");
    assert!(!replayed(&submit(&client, Method::PATCH, &path, "v", &body).await.expect(200)));
    // A replay also works for a key that was revoked since; only a new request is refused.
    client.delete(&path).await.expect(204);
    assert!(replayed(&submit(&client, Method::PATCH, &path, "q", &json!({"name": "two"})).await.expect(200)));

    problem(&submit(&client, Method::PATCH, &path, "w", &body).await, "invalid_state");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_get_a_conflict_while_the_first_holds_the_key() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();

    let (_, path) = made(&client).await;
    let holder = cluster.sql().await;
    holder
        .batch_execute(&format!(
            "begin; insert into idempotency (tenant_id, route, key, request_hash, answer)
             select id, route, 'held', '\\x00', '{{}}' from tenants, unnest(array['PATCH {path}', 'POST {path}/rotate']) route
             where name = 'acme'"
        ))
        .await
        .unwrap();
    let both = async || {
        let patched = submit(&client, Method::PATCH, &path, "held", &json!({"name": "x"})).await;
        [patched, submit(&client, Method::POST, &format!("{path}/rotate"), "held", &json!({})).await]
    };
    for answer in both().await {
        problem(&answer, "idempotency_in_progress");
    }

    holder.batch_execute("rollback").await.unwrap();

    assert_eq!(both().await.map(|answer| (answer.status, replayed(&answer))), [(200, false), (201, false)]);
}

#[track_caller]
fn refuses(answer: &Answer, secret: &str) {
    problem(answer, "forbidden");
    assert!(!answer.text.contains(secret), "{}", answer.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_is_shown_again_only_to_callers_that_may_have_it_now() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();
    let writer = async |extra: Value| {
        let mut body = json!({"name": "w", "scopes": ["keys:read", "keys:write"]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        admin.with_key(admin.post("/keys", body).await.expect(201).body["key"].as_str().unwrap())
    };
    let peer = writer(json!({})).await;
    let limited = writer(json!({"limits": {"rps": 1000, "burst": 1000}})).await;
    let in_an_hour = "select to_char(now() at time zone 'utc' + interval '1 hour', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')";
    let in_an_hour: String = cluster.sql().await.query_one(in_an_hour, &[]).await.unwrap().get(0);
    let mortal = writer(json!({"expires_at": in_an_hour})).await;

    // The limits that it got by default are not those that another caller would have got.
    let body = json!({"name": "k", "scopes": ["keys:read"]});
    let made = submit(&admin, Method::POST, "/keys", "c", &body).await.expect(201).body;
    let (text, path) = (made["key"].as_str().unwrap().to_owned(), format!("/keys/{}", made["id"].as_str().unwrap()));
    refuses(&submit(&limited, Method::POST, "/keys", "c", &body).await, &text);
    assert_eq!(submit(&peer, Method::POST, "/keys", "c", &body).await.expect(201).body, made);
    // The key has more scopes since.
    send(admin.request(Method::PATCH, &path).json(&json!({"scopes": ["admin"]}))).await.expect(200);
    refuses(&submit(&peer, Method::POST, "/keys", "c", &body).await, &text);
    let again = submit(&admin, Method::POST, "/keys", "c", &body).await.expect(201);
    assert!(replayed(&again) && again.body["key"] == made["key"]);

    // The old key ends with its grace, the new one does not.
    let (_, path) = self::made(&admin).await;
    let (rotate, body) = (format!("{path}/rotate"), json!({"grace_s": 600}));
    let new = submit(&admin, Method::POST, &rotate, "r", &body).await.expect(201).body;
    let text = new["key"].as_str().unwrap();
    refuses(&submit(&mortal, Method::POST, &rotate, "r", &body).await, text);
    assert_eq!(submit(&peer, Method::POST, &rotate, "r", &body).await.expect(201).body, new);
    let path = format!("/keys/{}", new["id"].as_str().unwrap());
    send(admin.request(Method::PATCH, &path).json(&json!({"scopes": ["admin"]}))).await.expect(200);
    refuses(&submit(&peer, Method::POST, &rotate, "r", &body).await, text);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_that_rotates_itself_with_a_grace_can_repeat_it() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();

    let body = json!({"name": "self", "scopes": ["keys:write"]});
    let made = admin.post("/keys", body).await.expect(201).body;
    let own = admin.with_key(made["key"].as_str().unwrap());
    let rotate = format!("/keys/{}/rotate", made["id"].as_str().unwrap());
    let first = submit(&own, Method::POST, &rotate, "r", &json!({"grace_s": 600})).await.expect(201);

    let again = submit(&own, Method::POST, &rotate, "r", &json!({"grace_s": 600})).await.expect(201);

    assert!(replayed(&again) && again.body == first.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_replayed_after_24_h_though_the_record_exists() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();

    let (_, path) = made(&client).await;
    let rotate = format!("{path}/rotate");
    let both = async || {
        let patched = submit(&client, Method::PATCH, &path, "p", &json!({"name": "x"})).await;
        [patched, submit(&client, Method::POST, &rotate, "r", &json!({})).await]
    };

    assert_eq!(both().await.map(|answer| (answer.status, replayed(&answer))), [(200, false), (201, false)]);
    // The control: within 24 h both are replayed, though the old key is revoked.
    assert_eq!(both().await.map(|answer| (answer.status, replayed(&answer))), [(200, true), (201, true)]);

    let age = "update idempotency set created_at = now() - interval '25 hours' where key in ('p', 'r')";
    assert_eq!(cluster.sql().await.execute(age, &[]).await.unwrap(), 2);

    for answer in both().await {
        problem(&answer, "invalid_state");
    }
}
