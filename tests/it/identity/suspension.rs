//! A suspension and keys that are created at the same moment: no key is missed, and no request waits without a limit.

use std::{process::Output, time::Duration};

use serde_json::{Value, json};
use tokio_postgres::Client as Sql;

use crate::support::{Client, Cluster, poll::poll_until};

/// Waits until this many statements of the cluster wait for a lock; `done` returns how many of them are not
/// expected any more.
pub async fn blocked(sql: &Sql, least: usize, done: impl Fn() -> usize) {
    poll_until("the others wait, or are done", Duration::from_secs(60), async || {
        let waiting =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        let waiting: i64 = sql.query_one(waiting, &[]).await.unwrap().get(0);
        (usize::try_from(waiting).unwrap() + done() >= least).then_some(())
    })
    .await;
}

fn suspending(cluster: &Cluster, name: &str) -> tokio::task::JoinHandle<Output> {
    let mut command = tokio::process::Command::from(cluster.command(&["tenants", "suspend", "--tenant", name]));
    tokio::spawn(async move { command.output().await.unwrap() })
}

#[tokio::test(flavor = "multi_thread")]
async fn suspension_waits_for_a_key_that_is_being_created() {
    let cluster = Cluster::simulated().await;

    cluster.key("acme", "admin");
    let (maker, sql) = (cluster.sql().await, cluster.sql().await);
    maker
        .batch_execute(
            "begin; insert into api_key (id, tenant_id, name, env, key_hash, pepper_v, hint, scopes)
             select gen_random_uuid(), id, 'late', 0, decode(repeat('07', 32), 'hex'), 1, '', '{}' from tenants where name = 'acme'",
        )
        .await
        .unwrap();
    let suspension = suspending(&cluster, "acme");
    blocked(&sql, 1, || usize::from(suspension.is_finished())).await;

    assert!(!suspension.is_finished(), "it did not wait for the key");

    maker.batch_execute("commit").await.unwrap();
    let output = suspension.await.unwrap();
    assert!(output.status.success(), "{output:?}");

    let outbox_entries =
        "select k.ver, count(o.id) from api_key k left join cache_outbox o on o.key_hash = k.key_hash and o.ver = k.ver
                where k.name = 'late' group by k.ver";
    let row = sql.query_one(outbox_entries, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (2, 1));
}

/// Creates a key and uses it at once: from then on the caches have it.
async fn made_and_used(client: Client, path: String, body: Value) -> String {
    let key = client.post(&path, body).await.expect(201).body["key"].as_str().unwrap().to_owned();
    client.with_key(&key).get("/keys/self").await;
    key
}

/// The suspension is stopped halfway, when it has read which keys there are. A key created meanwhile and used would be
/// accepted for as long as the caches keep it, if the suspension missed it.
#[tokio::test(flavor = "multi_thread")]
async fn key_created_or_rotated_during_a_suspension_is_refused() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();
    let operator = admin.with_key(&cluster.key("operators", "admin"));
    operator.get("/keys/self").await.expect(200);
    let own = admin.get("/keys/self").await.expect(200).body;
    let body = json!({"name": "k", "scopes": ["keys:read"], "tenant_id": own["tenant_id"]});
    let made = operator.post("/keys", body.clone()).await.expect(201).body;
    // Rotated once, so that Redis has registered all processes: the rotation under test then returns at once.
    let path = format!("/keys/{}/rotate", made["id"].as_str().unwrap());
    let old = operator.post(&path, json!({})).await.expect(201).body["id"].as_str().unwrap().to_owned();

    let (holder, sql) = (cluster.sql().await, cluster.sql().await);
    let first = format!("begin; update api_key set name = name where id = '{}'", own["id"].as_str().unwrap());
    holder.batch_execute(&first).await.unwrap();
    let suspension = suspending(&cluster, "acme");
    blocked(&sql, 1, || 0).await;
    let makers = [("/keys".to_owned(), body), (format!("/keys/{old}/rotate"), json!({}))]
        .map(|(path, body)| tokio::spawn(made_and_used(operator.clone(), path, body)));
    let finished = || makers.iter().filter(|maker| maker.is_finished()).count() + usize::from(suspension.is_finished());
    blocked(&sql, 3, finished).await;
    holder.batch_execute("rollback").await.unwrap();

    let output = suspension.await.unwrap();
    assert!(output.status.success(), "{output:?}");
    for maker in makers {
        let key = maker.await.unwrap();
        admin.with_key(&key).get("/keys/self").await.expect(401);
    }
}
