//! `Idempotency-Key`: one effect, however often and however concurrently a request is sent.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::Barrier;

use super::problem::problem;
use crate::support::{Answer, Client, Cluster, client::send, cluster::base_url, poll_until};

async fn post(client: &Client, path: &str, key: &str, body: &Value) -> Answer {
    send(client.request(Method::POST, path).header("Idempotency-Key", key).json(body)).await
}

fn replayed(answer: &Answer) -> bool {
    match answer.header("idempotent-replayed") {
        "true" => true,
        "" => false,
        other => panic!("{other}"),
    }
}

async fn count(sql: &tokio_postgres::Client, what: &str) -> i64 {
    sql.query_one(&format!("select count(*) from {what}"), &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn hundred_concurrent_requests_with_one_key_create_one_instance() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();

    let other_replica = cluster.spawn("serve");
    let clients = [client.clone(), Client::new(&base_url(&other_replica), &client.key)];
    let body = json!({"image": "web:1", "ports": [{"container": 80}], "labels": {"a": "1", "b": "2"}});
    let answers = future::join_all((0..100).map(|n| post(&clients[n % 2], "/instances", "once", &body))).await;
    let ids: HashSet<(String, String)> = answers.iter().map(|answer| (answer.instance(), answer.job())).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(answers.iter().filter(|answer| !replayed(answer)).count(), 1);

    let sql = cluster.sql().await;
    for table in
        ["instances", "jobs", "addresses", "published_ports", "idempotency", "events where kind = 'instance.accepted'"]
    {
        assert_eq!(count(&sql, table).await, 1, "{table}");
    }
}

/// The control: with the obvious implementation, check and then insert, the test above would fail.
#[tokio::test(flavor = "multi_thread")]
async fn checking_before_inserting_creates_duplicates() {
    const CLIENTS: usize = 10;
    let cluster = Cluster::simulated().await;
    let sql = cluster.sql().await;

    sql.batch_execute("create table naive (key text); create table unique_keys (key text primary key)").await.unwrap();
    let all_have_checked = Arc::new(Barrier::new(CLIENTS));
    let client = |_| {
        let (cluster, barrier) = (&cluster, all_have_checked.clone());
        async move {
            let sql = cluster.sql().await;
            sql.batch_execute("begin").await.unwrap();
            let found: i64 = sql.query_one("select count(*) from naive where key = 'once'", &[]).await.unwrap().get(0);
            barrier.wait().await;
            if found == 0 {
                sql.execute("insert into naive values ('once')", &[]).await.unwrap();
            }
            sql.batch_execute("commit").await.unwrap();
            // The same clients at the same moment, with the check in the database.
            sql.execute("insert into unique_keys values ('once') on conflict do nothing", &[]).await.unwrap()
        }
    };

    let inserted: u64 = future::join_all((0..CLIENTS).map(client)).await.into_iter().sum();

    assert!(count(&sql, "naive").await > 1, "the control does not show the race");
    assert_eq!((inserted, count(&sql, "unique_keys").await), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_key_is_scoped_to_tenant_route_and_request() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let sql = cluster.sql().await;
    let text = async |key: &str, body: &str| {
        let request = client.request(Method::POST, "/instances").header("Content-Type", "application/json");
        send(request.header("Idempotency-Key", key).body(body.to_owned())).await
    };

    // Compared as JSON, not as text.
    let first = text("k", r#"{"image":"web:1","env":{"A":"1","B":"2"},"labels":{}}"#).await;
    assert!(!replayed(&first));
    for same in [
        r#"{"image":"web:1","env":{"A":"1","B":"2"},"labels":{}}"#,
        r#"{"labels":{},"env":{"B":"2","A":"1"},"image":"web:1"}"#,
        "\n{ \"image\" : \"web:1\",\t\"env\":{\"A\":\"1\",  \"B\":\"2\"}, \"labels\": { } }\r\n",
        r#"{"image":"\u0077eb:1","env":{"A":"1","B":"2"},"labels":{}}"#,
    ] {
        let answer = text("k", same).await;
        assert!(replayed(&answer), "{same}: {}", answer.text);
        assert_eq!((answer.instance(), answer.job()), (first.instance(), first.job()), "{same}");
        assert_eq!(answer.header("location"), first.header("location"));
    }
    for other in
        [r#"{"image":"web:2"}"#, r#"{"image":"web:1","env":{"A":"1","B":"3"},"labels":{}}"#, r#"{"image":"web:1"}"#]
    {
        problem(&text("k", other).await, "idempotency_key_reused");
    }
    assert_eq!(count(&sql, "instances").await, 1);

    // Refused requests are not recorded, whatever refused them.
    for (key, refused, code) in [
        ("v", json!({"image": "web:1", "cpu_millis": 0}), "validation_failed"),
        ("w", json!({"image": "web:1", "network": "nowhere"}), "validation_failed"),
        ("x", json!({"image": "web:1", "name": "taken"}), "name_taken"),
    ] {
        if code == "name_taken" {
            client.post("/instances", json!({"image": "web:1", "name": "taken"})).await.instance();
        }
        let before = count(&sql, "idempotency").await;
        problem(&post(&client, "/instances", key, &refused).await, code);
        assert_eq!(count(&sql, "idempotency").await, before, "{code}");
        let now_right = post(&client, "/instances", key, &json!({"image": "web:1"})).await;
        assert_eq!((now_right.status, replayed(&now_right)), (202, false), "{}", now_right.text);
    }

    // The header itself.
    let body = json!({"image": "web:1"});
    for bad in ["", "a b", "a\tb", &"x".repeat(256)] {
        let pointers = problem(&post(&client, "/instances", bad, &body).await, "validation_failed");
        assert!(pointers[0].contains("Idempotency-Key"), "{pointers:?}");
    }
    let not_ascii = reqwest::header::HeaderValue::from_bytes(b"caf\xc3\xa9").unwrap();
    let post_with = || client.request(Method::POST, "/instances").json(&body);
    problem(&send(post_with().header("Idempotency-Key", not_ascii)).await, "validation_failed");
    let twice = post_with().header("Idempotency-Key", "one").header("Idempotency-Key", "two");
    problem(&send(twice).await, "validation_failed");
    for good in ["!", "~", "8e03978e-40d5-43dd-bc93-6894a57f9324", &"x".repeat(255)] {
        assert!(!replayed(&post(&client, "/instances", good, &body).await.expect(202)), "{good}");
        assert!(replayed(&post(&client, "/instances", good, &body).await.expect(202)), "{good}");
    }
    assert!(!replayed(&post(&client, "/instances", "X".repeat(255).as_str(), &body).await), "case matters");

    // The same key text of another tenant is another key; another API key of the same tenant uses the same record.
    let rival = client.with_key(&cluster.key("rival", "admin"));
    let theirs = post(&rival, "/instances", "k", &json!({"image": "web:9"})).await;
    assert!(!replayed(&theirs.expect(202)));
    let colleague = client.with_key(&cluster.key("acme", "instances:write"));
    let same = json!({"image": "web:1", "env": {"A": "1", "B": "2"}, "labels": {}});
    assert_eq!(post(&colleague, "/instances", "k", &same).await.instance(), first.instance());

    // A replay shows the present state.
    client.delete(&format!("/instances/{}", first.instance())).await.expect(202);
    let answer = post(&client, "/instances", "k", &same).await;
    assert_eq!((answer.job(), &answer.body["instance"]["status"]), (first.job(), &json!("deleted")));

    // After 24 h the key can be used again.
    let age = "update idempotency set created_at = now() - interval '25 hours' where key = 'k' and answer ->> 'instance_id' = $1";
    assert_eq!(sql.execute(age, &[&first.instance()]).await.unwrap(), 1);
    let second = post(&client, "/instances", "k", &json!({"image": "web:2"})).await;
    assert!(!replayed(&second) && second.instance() != first.instance());
    let again = post(&client, "/instances", "k", &json!({"image": "web:2"})).await;
    assert!(replayed(&again) && again.instance() == second.instance());
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_delete_returns_the_same_job() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();

    let delete = async |id: &str, key: &str| {
        send(client.request(Method::DELETE, &format!("/instances/{id}")).header("Idempotency-Key", key))
            .await
            .expect(202)
    };
    // One instance that a host has, and one that no host will ever have.
    let placed = client.create_running(json!({"image": "web:1"})).await["id"].as_str().unwrap().to_owned();
    let elsewhere = json!({"image": "web:1", "placement": {"host": "no-such-host"}});
    let unplaced = client.post("/instances", elsewhere).await.instance();
    for id in [&placed, &unplaced] {
        let first = delete(id, "d").await;
        assert!(!replayed(&first));
        let again = delete(id, "d").await;
        assert!(replayed(&again));
        // Without the key, and with another one, it is the same deletion as well.
        let plain = client.delete(&format!("/instances/{id}")).await.expect(202);
        let other = delete(id, "e").await;
        for answer in [&again, &plain, &other] {
            assert_eq!((answer.job(), answer.instance()), (first.job(), first.instance()), "{}", answer.text);
        }
        assert_eq!(client.wait_for(id, "deleted").await["status"], "deleted");
        let late = delete(id, "d").await;
        assert_eq!(
            (replayed(&late), late.job(), &late.body["instance"]["status"]),
            (true, first.job(), &json!("deleted"))
        );
    }
    // Fifty concurrent deletes of a third instance.
    let third = client.create_running(json!({"image": "web:1"})).await["id"].as_str().unwrap().to_owned();
    let answers = future::join_all((0..50).map(|_| delete(&third, "f"))).await;

    let jobs: HashSet<String> = answers.iter().map(Answer::job).collect();

    assert_eq!(jobs.len(), 1, "{jobs:?}");
    assert_eq!(answers.iter().filter(|answer| !replayed(answer)).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_key_creation_shows_the_same_key_stored_nowhere() {
    let cluster = Cluster::simulated().await;
    let (api, client) = cluster.serve();
    let body = json!({"name": "ci", "scopes": ["instances:read"]});
    let answers = future::join_all((0..20).map(|_| post(&client, "/keys", "k", &body))).await;
    let first = answers.iter().find(|answer| !replayed(answer)).unwrap().body.clone();
    let key = first["key"].as_str().unwrap();
    for answer in &answers {
        assert_eq!((answer.status, &answer.body), (201, &first));
        assert_eq!(answer.header("cache-control"), "no-store");
    }
    assert_eq!(answers.iter().filter(|answer| !replayed(answer)).count(), 1);
    assert_eq!(client.with_key(key).get("/keys/self").await.expect(200).body["id"], first["id"]);
    problem(&post(&client, "/keys", "k", &json!({"name": "ci", "scopes": ["admin"]})).await, "idempotency_key_reused");
    // Another key, another tenant's "k", and the same key on another route are other requests.
    for (who, idempotency_key) in [(&client, "l"), (&client.with_key(&cluster.key("rival", "admin")), "k")] {
        let other = post(who, "/keys", idempotency_key, &body).await.expect(201);
        assert!(!replayed(&other) && other.body["key"] != first["key"]);
    }
    assert!(!replayed(&post(&client, "/instances", "k", &json!({"image": "web:1"})).await.expect(202)));

    // The key's text, its random part alone, or either in hexadecimal (as bytea is printed), in any column of any
    // table.
    let sql = cluster.sql().await;
    let tables = "select quote_ident(table_name) from information_schema.tables where table_schema = 'public'";
    let tables: Vec<String> = sql.query(tables, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    let found = async |text: &str| {
        let mut found = Vec::new();
        for table in &tables {
            let select = format!("select count(*) from {table} t where t::text like '%' || $1::text || '%'");
            if sql.query_one(&select, &[&text]).await.unwrap().get::<_, i64>(0) > 0 {
                found.push(table.clone());
            }
        }
        found
    };
    let random = &key[10..40];
    for text in [key, random] {
        let hex = data_encoding::HEXLOWER.encode(text.as_bytes());
        let base64 = data_encoding::BASE64.encode(text.as_bytes());
        for form in [text, &hex, base64.trim_end_matches('=')] {
            assert_eq!(found(form).await, Vec::<String>::new(), "{form}");
        }
    }
    // The control: the search does find what is stored.
    assert_eq!(found(&key[52..]).await, ["api_key"], "the hint");
    assert!(tables.len() > 10 && found(first["id"].as_str().unwrap()).await.contains(&"idempotency".to_owned()));
    assert!(!api.log().contains(random));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_get_a_conflict_while_the_first_holds_the_key() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let holder = cluster.sql().await;

    let instance = client.post("/instances", json!({"image": "web:1"})).await.instance();
    let deletion = format!("/instances/{instance}");
    let hold = format!(
        "begin; insert into idempotency (tenant_id, route, key, request_hash, answer)
         select id, route, 'held', '\\x00', '{{}}' from tenants, unnest(array['POST /instances', 'POST /keys', 'DELETE {deletion}']) route
         where name = 'acme'"
    );
    let submit = async || {
        let (body, key) = (json!({"image": "web:1"}), json!({"name": "k", "scopes": ["admin"]}));
        let delete = client.request(Method::DELETE, &deletion).header("Idempotency-Key", "held");
        let (one, two, three) = future::join3(
            post(&client, "/instances", "held", &body),
            post(&client, "/keys", "held", &key),
            send(delete),
        )
        .await;
        [one, two, three]
    };
    holder.batch_execute(&hold).await.unwrap();
    let started = Instant::now();
    for answer in submit().await {
        problem(&answer, "idempotency_in_progress");
    }

    assert!((900..10_000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());

    holder.batch_execute("rollback").await.unwrap();
    // The transaction that held the record was rolled back, so the requests are accepted now.
    assert_eq!(
        submit().await.map(|answer| (answer.status, replayed(&answer))),
        [(202, false), (201, false), (202, false)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn request_that_waits_for_the_first_gets_its_response() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let sql = cluster.sql().await;

    let body = json!({"image": "web:1"});
    // The first request writes its record, and then waits for the tenant's row.
    sql.execute("update tenants set max_instances = 10", &[]).await.unwrap();
    let holder = cluster.sql().await;
    holder.batch_execute("begin; select from tenants for update").await.unwrap();
    let waiting = async |many: i64| {
        let blocked = "pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        poll_until("requests that wait", Duration::from_millis(900), async || {
            (count(&sql, blocked).await == many).then_some(())
        })
        .await;
    };
    let first = async { post(&client, "/instances", "k", &body).await };
    let others = async {
        waiting(1).await;
        let others = future::join_all((0..3).map(|_| post(&client, "/instances", "k", &body)));
        let release = async {
            waiting(4).await;
            holder.batch_execute("commit").await.unwrap();
        };
        future::join(others, release).await.0
    };
    let (first, others) = future::join(first, others).await;

    assert!(!replayed(&first));

    for other in others {
        assert_eq!((other.instance(), other.job(), replayed(&other)), (first.instance(), first.job(), true));
    }
}
