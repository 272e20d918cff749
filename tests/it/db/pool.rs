//! The connection pool: it has a bound per server, waits when all connections are busy, and never lends one that still
//! runs a statement.

use std::{
    collections::HashSet,
    pin::pin,
    time::{Duration, Instant},
};

use app::{
    config::database::PostgresUrl,
    core::db::{Consistency, DbError, DualDb, migrate},
};
use deadpool_postgres::{Manager, ManagerConfig, RecyclingMethod};
use futures_util::future;
use serde_json::json;
use tokio_postgres::NoTls;

use super::{dual, open};
use crate::{
    identity::fault_proxy::{FaultProxy, Mode},
    support::{App, Client, Cluster, cluster::base_url, poll_until},
};

#[tokio::test(flavor = "multi_thread")]
async fn db_max_conns_bounds_the_connections_of_a_process() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("DB_MAX_CONNS", 3);
    let key = cluster.key("acme", "admin");
    let sql = cluster.sql().await;
    let count = async || -> i64 {
        let count = "select count(*) from pg_stat_activity
                     where datname = current_database() and application_name = 'app-primary'";
        sql.query_one(count, &[]).await.unwrap().get(0)
    };
    // The server needs a moment to notice that the process which created the key has ended.
    poll_until("no connection is open", Duration::from_secs(30), async || (count().await == 0).then_some(())).await;
    let api = cluster.spawn("serve");
    let client = Client::new(&base_url(&api), &key);

    let mut asking = pin!(future::join_all((0..100).map(async |n| {
        if n % 2 == 0 {
            client.get("/instances").await.expect(200);
        } else {
            client.post("/instances", json!({"image": cluster.image})).await;
        }
    })));
    let mut most = 0;
    // Counts the connections while the requests run.
    while future::poll_immediate(&mut asking).await.is_none() {
        most = count().await.max(most);
    }
    assert_eq!(most, 3, "connections at most: the bound is reached, and holds");
}

#[tokio::test(flavor = "multi_thread")]
async fn thousand_requests_on_four_connections_get_200_or_503() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("DB_MAX_CONNS", 4).set("RUST_LOG", "warn,app=info");
    let (_api, client) = cluster.serve();

    let answers = future::join_all((0..1000).map(|_| client.get("/instances"))).await;
    let served = answers.iter().filter(|answer| answer.status == 200).count();
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        assert_eq!((answer.status, answer.code()), (503, "unavailable"), "{}", answer.text);
        assert_ne!(answer.header("retry-after"), "", "{:?}", answer.headers);
    }

    // On two idle cores all of them; a slower machine may have to refuse some.
    assert!(served > 100, "only {served} were served");

    // After the burst no request is refused.
    for _ in 0..20 {
        client.get("/instances").await.expect(200);
    }
}

/// Slightly less than the timeout of a statement.
const SLEEP: &str = "select pg_sleep(1.8)";

/// Returns the server process of the connection that the pool lends next.
async fn pid(db: &DualDb) -> i32 {
    let rows = db.read(Consistency::Primary, |c| async move { c.query("select pg_backend_pid()", &[]).await }).await;
    rows.unwrap()[0].get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_statement_closes_its_connection() {
    let cluster = Cluster::simulated().await;
    // With one connection, the next caller gets that one or a new one.
    let db = dual(&cluster, 1);
    let first = pid(&db).await;
    assert_eq!(pid(&db).await, first, "a connection at rest is lent again");
    // The caller gives up while the server still works.
    let slow = db.read(Consistency::Primary, |c| async move { c.query(SLEEP, &[]).await });
    tokio::time::timeout(Duration::from_millis(100), slow).await.expect_err("it sleeps");
    assert_ne!(pid(&db).await, first);

    // The same for a write that is dropped between begin and commit: nothing of it stays.
    let conn = db.write().await.unwrap();
    conn.begin().await.unwrap();
    conn.query("insert into tenants (id, name) values (gen_random_uuid(), 'half')", &[]).await.unwrap();
    drop(conn);
    let names = db.read(Consistency::Primary, |c| async move { c.query("select name from tenants", &[]).await }).await;
    assert!(names.unwrap().is_empty());
}

/// A server does this when it forks for twenty connections at once while the machine starts containers.
#[tokio::test(flavor = "multi_thread")]
async fn pool_waits_for_a_server_slow_to_accept_connections() {
    let mut cluster = Cluster::simulated().await;

    let (line, url) = FaultProxy::to_postgres(&cluster.database_url).await;
    cluster.database_url = url;
    line.set(Mode::Delayed(Duration::from_millis(300)));
    let began = Instant::now();
    dual(&cluster, 1).write().await.unwrap();
    assert!(began.elapsed() > Duration::from_secs(1), "there and back, to log in and for the check of its role");

    // The wait is bounded.
    line.set(Mode::Stalled);
    let refused = dual(&cluster, 1).write().await.err();
    assert!(matches!(refused, Some(DbError::Unavailable(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_health_check_closes_its_connection() {
    let mut cluster = Cluster::simulated().await;

    let (line, url) = FaultProxy::to_postgres(&cluster.database_url).await;
    cluster.database_url = url;
    let db = dual(&cluster, 1);
    let first = pid(&db).await;
    assert!(db.health().await.primary);
    assert_eq!(pid(&db).await, first, "an answer that came leaves the connection at rest");

    line.set(Mode::Stalled);
    assert!(!db.health().await.primary);

    line.set(Mode::Open);
    assert_ne!(pid(&db).await, first, "the answer to the health check was still to come on this one");
    assert!(db.health().await.primary);
}

/// The control: deadpool alone lends the busy connection, and the next caller waits for another caller's statement.
#[tokio::test(flavor = "multi_thread")]
async fn deadpool_alone_lends_a_connection_that_is_still_busy() {
    let cluster = Cluster::simulated().await;

    let config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_config(cluster.database_url.parse().unwrap(), NoTls, config);
    let pool = deadpool_postgres::Pool::builder(manager).max_size(1).build().unwrap();
    let object = pool.get().await.unwrap();
    let pid = "select pg_backend_pid()";
    let first: i32 = object.query_one(pid, &[]).await.unwrap().get(0);
    let slow = async move { object.query(SLEEP, &[]).await };
    tokio::time::timeout(Duration::from_millis(100), slow).await.expect_err("it sleeps");
    let next = pool.get().await.unwrap();
    let sleeping = "select query from pg_stat_activity where pid = $1 and state = 'active'";

    let sleeping: String = cluster.sql().await.query_one(sleeping, &[&first]).await.unwrap().get(0);

    assert_eq!(sleeping, SLEEP, "lent when it was done: the test above proves nothing");
    assert_eq!(next.query_one(pid, &[]).await.unwrap().get::<_, i32>(0), first, "another one was lent");
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_and_pool_waits_have_deadlines() {
    let cluster = Cluster::simulated().await;

    let db = dual(&cluster, 2);
    let sleep = || db.read(Consistency::Primary, |c| async move { c.query("select pg_sleep(10)", &[]).await });
    let started = Instant::now();
    // Two sleep until the server ends them; the third finds no connection.
    let waiting = async {
        tokio::task::yield_now().await;
        let third = db.read(Consistency::Primary, |c| async move { c.query("select 1", &[]).await });
        third.await
    };
    let (one, two, third) = tokio::join!(sleep(), sleep(), waiting);

    // The deadline is two seconds. Without it all ten would pass.
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());

    for slow in [one, two] {
        assert!(matches!(slow, Err(DbError::Unavailable(_))), "{slow:?}");
    }
    // The connection becomes free at about the moment that the wait ends: either result is right, hanging is not.
    assert!(matches!(third, Ok(_) | Err(DbError::Unavailable(_))), "{third:?}");

    let rows = db.read(Consistency::Primary, |c| async move { c.query("select 1", &[]).await }).await.unwrap();
    assert_eq!(rows.len(), 1);
}

/// Returns the sockets of a process, by inode, whose other end has this port.
fn sockets(api: &App, port: u16) -> HashSet<String> {
    let other_end = format!(":{port:04X}");
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", api.pid())).unwrap();
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let numbers: HashSet<String> =
        lines.filter(|line| line[2].ends_with(&other_end)).map(|line| format!("socket:[{}]", line[9])).collect();
    open_sockets(api).intersection(&numbers).cloned().collect()
}

/// Returns all sockets that the process has not closed, whatever became of the other end.
fn open_sockets(api: &App) -> HashSet<String> {
    let open = std::fs::read_dir(format!("/proc/{}/fd", api.pid())).unwrap();
    // A file descriptor that is closed meanwhile is skipped.
    open.filter_map(|file| Some(std::fs::read_link(file.unwrap().path()).ok()?.display().to_string())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_connection_is_not_lent() {
    let mut cluster = Cluster::simulated().await;

    let key = cluster.key("acme", "admin");
    let (line, url) = FaultProxy::to_postgres(&cluster.database_url).await;
    cluster.database_url = url;
    let api = cluster.spawn("serve");
    let client = Client::new(&base_url(&api), &key);

    for _ in 0..10 {
        future::join_all((0..40).map(|_| client.get("/instances"))).await;
        let lent = sockets(&api, line.port);
        assert!(lent.len() > 1, "nothing to cut");
        line.set(Mode::Cut);
        // The process has had the time to notice, so that the connection which the pool lends must be new.
        poll_until("the process notices", Duration::from_secs(30), async || {
            (open_sockets(&api).is_disjoint(&lent) && sockets(&api, line.port).is_empty()).then_some(())
        })
        .await;
        line.set(Mode::Open);
        client.get("/instances").await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_have_jit_disabled() {
    let cluster = Cluster::simulated().await;
    const JIT: &str = "select current_setting('jit'), current_setting('application_name')";
    let usual: String = cluster.sql().await.query_one(JIT, &[]).await.unwrap().get(0);
    assert_eq!(usual, "on", "the server does not by default: nothing is shown");
    let sign = if cluster.database_url.contains('?') { '&' } else { '?' };
    let with_jit = format!("{}{sign}options=-c%20jit%3Don", cluster.database_url);

    for url in [&cluster.database_url, &with_jit] {
        let db = open(url, Some(url), 1);
        let mut seen = Vec::new();
        for consistency in [Consistency::Primary, Consistency::Any] {
            let rows = db.read(consistency, |c| async move { c.query(JIT, &[]).await }).await.unwrap();
            seen.push((rows[0].get::<_, String>(0), rows[0].get::<_, String>(1)));
        }
        let url = PostgresUrl::parse(url).unwrap();
        let row = migrate::connect(&url, Duration::ZERO).await.unwrap().query_one(JIT, &[]).await.unwrap();
        seen.push((row.get(0), row.get(1)));

        let expected = ["app-primary", "app-replica", "app-migrate"].map(|name| ("off".to_owned(), name.to_owned()));
        assert_eq!(seen, expected);
    }
}
