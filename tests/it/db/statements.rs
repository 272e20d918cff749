//! Prepared statements while the schema changes, and in a session that was reset: the pool prepares them again and
//! repeats the call.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use app::core::db::{Consistency, DbError, DualDb, Row};
use futures_util::future;
use reqwest::Method;
use serde_json::{Value, json};

use super::{dual, open};
use crate::support::{App, Client, Cluster, client::send};

const READ: &str = "select v from notes where id = 1";
const WRITE: &str = "insert into notes (id, v) values (2, 8) returning v";
const PID: &str = "select pg_backend_pid()";

/// Creates a cluster with a table of the test's own, whose `v` is an integer.
async fn cluster_with_notes() -> Cluster {
    let cluster = Cluster::simulated().await;
    let notes = "create table notes (id integer, v integer); insert into notes values (1, 7)";
    cluster.sql().await.batch_execute(notes).await.unwrap();
    cluster
}

/// Changes the column's type, so that Postgres refuses the prepared `READ` and `WRITE`.
async fn widen(cluster: &Cluster) {
    cluster.sql().await.batch_execute("alter table notes alter column v type bigint").await.unwrap();
}

async fn read(db: &DualDb, consistency: Consistency, sql: &'static str) -> Result<Vec<Row>, DbError> {
    db.read(consistency, |c| async move { c.query(sql, &[]).await }).await
}

async fn pid(db: &DualDb, consistency: Consistency) -> i32 {
    read(db, consistency, PID).await.unwrap()[0].get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_plan_runs_anew_on_every_connection() {
    let cluster = cluster_with_notes().await;
    let db = dual(&cluster, 3);
    let conns = async |n| future::join_all((0..n).map(|_| db.write())).await.into_iter().map(Result::unwrap);
    // One call is repeated while the two other connections, whose plans are as old, are idle.
    for n in [1, 3] {
        let reset = "delete from notes where id = 2; alter table notes alter column v type integer";
        cluster.sql().await.batch_execute(reset).await.unwrap();
        let all: Vec<_> = conns(3).await.collect();
        for conn in &all {
            conn.query(READ, &[]).await.unwrap();
            conn.query(WRITE, &[]).await.unwrap();
        }
        drop(all);
        widen(&cluster).await;

        for conn in conns(n).await {
            let rows = conn.query(WRITE, &[]).await.unwrap();
            assert_eq!(rows[0].get::<_, i64>(0), 8);
            let rows = conn.query(READ, &[]).await.unwrap();
            assert_eq!(rows[0].get::<_, i64>(0), 7);
        }

        let written = "select count(*) from notes where id = 2";
        let written: i64 = cluster.sql().await.query_one(written, &[]).await.unwrap().get(0);
        assert_eq!(written, 3 + n, "each write was done once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_plan_closes_its_connection_on_both_servers() {
    let cluster = cluster_with_notes().await;
    let db = open(&cluster.database_url, Some(&cluster.database_url), 1);
    for consistency in [Consistency::Primary, Consistency::Any] {
        cluster.sql().await.batch_execute("alter table notes alter column v type integer").await.unwrap();
        read(&db, consistency, READ).await.unwrap();
        let before = pid(&db, consistency).await;
        widen(&cluster).await;

        let rows = read(&db, consistency, READ).await.unwrap();

        assert_eq!(rows[0].get::<_, i64>(0), 7, "{consistency:?}");
        assert_ne!(pid(&db, consistency).await, before, "{consistency:?}");
    }
    let by = "select current_setting('application_name')";
    let by: String = read(&db, Consistency::Any, by).await.unwrap()[0].get(0);
    assert_eq!(by, "app-replica", "the replica did not answer: only the primary was shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn forgotten_statements_are_prepared_on_another_connection() {
    let cluster = cluster_with_notes().await;
    let db = open(&cluster.database_url, Some(&cluster.database_url), 1);
    for consistency in [Consistency::Primary, Consistency::Any] {
        read(&db, consistency, READ).await.unwrap();
        let before = pid(&db, consistency).await;
        // A pooler in between does this to a session before it lends it to another client.
        read(&db, consistency, "deallocate all").await.unwrap();

        let rows = read(&db, consistency, READ).await.unwrap();

        assert_eq!(rows[0].get::<_, i32>(0), 7, "{consistency:?}");
        assert_ne!(pid(&db, consistency).await, before, "{consistency:?}");
    }
    // A write is repeated too, and takes effect once.
    db.write().await.unwrap().query(WRITE, &[]).await.unwrap();
    read(&db, Consistency::Primary, "deallocate all").await.unwrap();
    db.write().await.unwrap().query(WRITE, &[]).await.unwrap();
    let written = "select count(*) from notes where id = 2";
    let written: i64 = cluster.sql().await.query_one(written, &[]).await.unwrap().get(0);
    assert_eq!(written, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_statement_in_a_transaction_undoes_it() {
    let cluster = cluster_with_notes().await;
    let db = dual(&cluster, 1);
    read(&db, Consistency::Primary, READ).await.unwrap();
    let before = pid(&db, Consistency::Primary).await;
    for spoil in ["deallocate all", "alter table notes alter column v type bigint"] {
        let conn = db.write().await.unwrap();
        conn.query(READ, &[]).await.unwrap();
        conn.begin().await.unwrap();
        conn.query("insert into tenants (id, name) values (gen_random_uuid(), 'half')", &[]).await.unwrap();
        // Only this session can drop what it prepared; a table that it has not used can be changed by another session.
        match spoil {
            "deallocate all" => drop(conn.query("deallocate all", &[]).await.unwrap()),
            other => cluster.sql().await.batch_execute(other).await.unwrap(),
        }

        let result = conn.query(READ, &[]).await;

        assert!(matches!(result, Err(DbError::StaleStatement { .. })), "{spoil}: {result:?}");
        drop(conn);
        let tenants = read(&db, Consistency::Primary, "select id from tenants").await.unwrap();
        assert!(tenants.is_empty(), "{spoil}: half of the transaction is there");
        assert_ne!(pid(&db, Consistency::Primary).await, before, "{spoil}");
        // The same transaction succeeds when it is repeated.
        let conn = db.write().await.unwrap();
        conn.begin().await.unwrap();
        conn.query(READ, &[]).await.unwrap();
        conn.commit().await.unwrap();
    }
}

/// Calls every route that reads or writes rows as one tenant, and asserts each response.
async fn walk(client: &Client, image: &str) {
    let key = format!("walk-{}", uuid::Uuid::now_v7());
    let create =
        || client.request(Method::POST, "/instances").header("Idempotency-Key", &key).json(&json!({"image": image}));
    let made = send(create()).await;
    let (id, job) = (made.instance(), made.job());
    assert_eq!(send(create()).await.instance(), id, "replayed");
    assert_eq!(client.wait_for(&id, "running").await["status"], "running");
    let new_key = json!({"name": "k", "scopes": ["instances:read"]});
    let made = client.post("/keys", new_key.clone()).await.expect(201).body;
    let key = format!("/keys/{}", made["id"].as_str().unwrap());
    let network = client.get("/networks").await.expect(200).body["items"][0]["id"].as_str().unwrap().to_owned();
    for path in [
        &format!("/instances/{id}"),
        "/instances",
        "/instances?status=running",
        &format!("/jobs/{job}"),
        "/jobs",
        "/keys",
        "/keys/self",
        &key,
        "/networks",
        &format!("/networks/{network}"),
    ] {
        client.get(path).await.expect(200);
    }
    send(client.request(Method::PATCH, &key).json(&json!({"name": "changed"}))).await.expect(200);
    client.post(&format!("{key}/rotate"), json!({"grace_s": 60})).await.expect(201);
    client.delete(&key).await.expect(204);
    client.delete_fully(&id).await;
}

/// Lists in a loop until `stop`, and returns the responses that were not 200.
fn lists(client: &Client, stop: &Arc<AtomicBool>) -> tokio::task::JoinHandle<Vec<String>> {
    let (client, stop) = (client.clone(), stop.clone());
    tokio::spawn(async move {
        let mut failed = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            for path in ["/instances", "/jobs", "/keys", "/networks"] {
                let answer = client.get(path).await;
                if answer.status != 200 {
                    failed.push(format!("GET {path}: {} {}", answer.status, answer.text));
                }
            }
        }
        failed
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn added_columns_change_nothing_for_the_running_release() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("DB_MAX_CONNS", 4);
    let (api, client) = cluster.serve();
    let worker = cluster.work();
    let sql = cluster.sql().await;
    // With a quota, because its function reads the tenant's row.
    sql.execute("update tenants set max_instances = 1000", &[]).await.unwrap();
    let walks = async |n| future::join_all((0..n).map(|_| walk(&client, &cluster.image))).await;
    for _ in 0..3 {
        walks(4).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let lists = [lists(&client, &stop), lists(&client, &stop)];

    let tables = "select tablename::text from pg_tables where schemaname = 'public'";
    for row in sql.query(tables, &[]).await.unwrap() {
        let table: String = row.get(0);
        let add = format!("alter table {table} add column of_the_next_release text default 'x'");
        sql.batch_execute(&add).await.unwrap();
    }
    for _ in 0..3 {
        walks(4).await;
    }

    stop.store(true, Ordering::Relaxed);
    for failed in future::join_all(lists).await {
        assert_eq!(failed.unwrap(), [""; 0]);
    }
    for process in [&api, &worker] {
        assert_no_outdated_statement(process);
    }
    let metrics = client.get("/metrics").await.expect(200).text;
    assert!(!metrics.contains("stale_statement"), "a statement does not name its columns: {metrics}");
}

/// Asserts that the log has no outdated statement, and no heartbeat or claim that failed.
fn assert_no_outdated_statement(process: &App) {
    let log = process.log();
    for text in ["cached plan", "out of date", "heartbeat failed", "could not claim", "could not rescue"] {
        assert!(!log.contains(text), "{text}:\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_statements_of_a_process_run_once_more() {
    let cluster = Cluster::simulated().await;
    let (api, client) = cluster.serve();
    let _worker = cluster.work();
    walk(&client, &cluster.image).await;
    let key = client.get("/keys/self").await.expect(200).body;
    // The release names its columns, so only another type makes its statements outdated; nearly all of them read
    // `name`.
    let sql = cluster.sql().await;
    for table in ["instances", "api_key", "networks", "hosts"] {
        sql.batch_execute(&format!("alter table {table} alter column name type varchar(255)")).await.unwrap();
    }

    walk(&client, &cluster.image).await;

    let same: Value = client.get("/keys/self").await.expect(200).body;
    assert_eq!(same["id"], key["id"]);
    api.line("running the statement once more");
    let metrics = client.get("/metrics").await.expect(200).text;
    assert!(metrics.contains("db_conns_discarded_total{cause=\"stale_statement\"} "), "{metrics}");
}
