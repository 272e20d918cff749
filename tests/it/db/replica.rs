//! A real primary with a real streaming replica: lists are read from the replica, and its failures fail no request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;

use crate::support::{
    App, Client, Cluster, Postgres,
    client::send,
    cluster::{base_url, with_database},
    poll_until,
    redis_server::RedisServer,
};

struct Pair {
    primary: Postgres,
    replica: Postgres,
    redis: RedisServer,
    cluster: Cluster,
    api: App,
    client: Client,
    database: String,
}

impl Pair {
    async fn start() -> Self {
        let primary = Postgres::primary().await;
        let mut cluster = Cluster::on(&primary).await;
        let replica = Postgres::replica_of(&primary).await;
        let redis = RedisServer::start();
        cluster.redis_url = redis.url();
        let database: tokio_postgres::Config = cluster.database_url.parse().unwrap();
        let database = database.get_dbname().unwrap().to_owned();
        cluster.set("DATABASE_READ_URL", with_database(&replica.url("postgres"), &database));
        let (api, client) = cluster.serve();
        Self { primary, replica, redis, cluster, api, client, database }
    }

    /// Returns a client of a tenant that has written nothing through this process, with an instance to list.
    async fn reader(&self) -> (Client, String) {
        let other = self.cluster.spawn("serve");
        let writer = Client::new(&base_url(&other), &self.cluster.key("reader", "admin"));
        let id = writer.post("/instances", json!({"image": self.cluster.image})).await.instance();
        self.caught_up().await;
        self.forget_writers().await;
        (self.client.with_key(&writer.key), id)
    }

    /// Makes Redis forget which tenants wrote, as it does after five seconds.
    async fn forget_writers(&self) {
        let name = |what: &str, id: &uuid::Uuid| format!("app:{id}:recent_write:{what}");
        let id = self.cluster.id().await;
        // This key is what the first query leaves: the server has known all writers for a while.
        let info = self.redis.cli(&["info", "server"]);
        let run = info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap().trim();
        self.redis.cli(&["set", &name("server", &id), run]);
        for key in self.redis.cli(&["--scan", "--pattern", &name("*", &id)]).lines() {
            if key != name("server", &id) {
                self.redis.cli(&["del", key]);
            }
        }
    }

    async fn pause_replay(&self) {
        self.replica.sql("postgres").await.batch_execute("select pg_wal_replay_pause()").await.unwrap();
    }

    /// Waits until the replica has replayed everything that the primary has written so far.
    async fn caught_up(&self) {
        self.replica.catch_up_with(&self.primary).await;
    }

    /// Returns how many reads of this process each server has served, by its metrics: (primary, replica).
    async fn served(&self) -> (u64, u64) {
        let text = self.client.get("/metrics").await.expect(200).text;
        let count = |role: &str| {
            let label = format!("served_by=\"{role}\"}} ");
            let series = text.lines().filter(|line| line.starts_with("db_read_routed_total{"));
            series.filter_map(|line| line.split_once(&label)?.1.parse::<u64>().ok()).sum()
        };
        (count("primary"), count("replica"))
    }
}

/// Returns how many transactions the app's connections have begun on a server, by the server's statistics.
async fn transactions(server: &Postgres, database: &str) -> i64 {
    let sql = server.sql("postgres").await;
    // A backend reports when it becomes idle, at most once a second; a new session of this test is in another database.
    sql.batch_execute("select pg_stat_clear_snapshot()").await.unwrap();
    let row = sql.query_one("select xact_commit from pg_stat_database where datname = $1", &[&database]).await.unwrap();
    row.get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_read_the_replica_and_everything_else_the_primary() {
    let pair = Pair::start().await;
    let (reader, id) = pair.reader().await;
    let before = (pair.served().await, transactions(&pair.replica, &pair.database).await);
    for _ in 0..50 {
        let list = reader.get("/instances").await.expect(200).body;
        assert_eq!(list["items"][0]["id"], id, "{list}");
    }
    let lists = pair.served().await;
    // Sometimes Redis takes longer to return the last write than a list waits for it: that list is read from the
    // primary.
    assert!(lists.1 >= before.0.1 + 40, "lists that the replica did not serve: {before:?} {lists:?}");
    // The replica's own count agrees, once its backends have reported.
    poll_until("the replica counts the lists", Duration::from_secs(60), async || {
        reader.get("/networks").await.expect(200);
        (transactions(&pair.replica, &pair.database).await >= before.1 + 50).then_some(())
    })
    .await;

    let before = pair.served().await;
    for _ in 0..20 {
        reader.get(&format!("/instances/{id}")).await.expect(200);
        reader.post("/instances", json!({"image": pair.cluster.image})).await.expect(202);
    }
    let after = pair.served().await;
    assert_eq!(after.1, before.1, "reads by id that the replica served");
    assert!(after.0 >= before.0 + 20, "{before:?} {after:?}");
}

/// Several clients that list in a loop until `end`.
struct Lists {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<(Vec<String>, Duration)>>,
}

impl Lists {
    fn start(client: &Client) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let one = || {
            let (client, stop, done) = (client.clone(), stop.clone(), done.clone());
            tokio::spawn(async move {
                let (mut failed, mut slowest) = (Vec::new(), Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    let answer = client.get("/instances").await;
                    slowest = slowest.max(started.elapsed());
                    if answer.status != 200 {
                        failed.push(format!("{} {}", answer.status, answer.text));
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                (failed, slowest)
            })
        };
        let tasks = (0..4).map(|_| one()).collect();
        Self { stop, done, tasks }
    }

    /// Waits until this many more lists are done.
    async fn more(&self, n: u64) {
        let from = self.done.load(Ordering::Relaxed);
        poll_until("lists go on", Duration::from_secs(60), async || {
            (self.done.load(Ordering::Relaxed) >= from + n).then_some(())
        })
        .await;
    }

    /// Stops the clients, and returns the failures and the longest time.
    async fn end(self) -> (Vec<String>, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let all = future::join_all(self.tasks).await.into_iter().map(Result::unwrap);
        all.fold((Vec::new(), Duration::ZERO), |(failed, slowest), (more, slow)| {
            ([failed, more].concat(), slowest.max(slow))
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_replica_fails_no_list_and_is_used_again_later() {
    let mut pair = Pair::start().await;
    let (reader, _) = pair.reader().await;
    let lists = Lists::start(&reader);
    lists.more(100).await;
    pair.replica.stop();
    let stopped = pair.served().await;
    // Long enough for several attempts to use the replica.
    poll_until("the primary serves lists", Duration::from_secs(60), async || {
        lists.more(20).await;
        let text = reader.get("/metrics").await.expect(200).text;
        let line = "db_fallback_total{cause=\"unavailable\"} ";
        let fallbacks = text.lines().find_map(|found| found.strip_prefix(line))?.parse::<u64>().ok()?;
        (fallbacks >= 2 && pair.served().await.0 > stopped.0).then_some(())
    })
    .await;
    assert_eq!(reader.get("/health/ready").await.expect(200).body["status"], "degraded");

    let before = pair.served().await.1;
    pair.replica.start().await;
    poll_until("the replica serves again", Duration::from_secs(60), async || {
        (pair.served().await.1 > before + 20).then_some(())
    })
    .await;
    let (failed, _) = lists.end().await;
    assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), failed.first());
    assert!(pair.api.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn hung_replica_fails_no_list_and_adds_little_latency() {
    let pair = Pair::start().await;
    let (reader, id) = pair.reader().await;
    // The latency of lists on this machine without a fault.
    let lists = Lists::start(&reader);
    lists.more(300).await;
    let (failed, usual) = lists.end().await;
    assert!(failed.is_empty(), "{failed:?}");

    let lists = Lists::start(&reader);
    lists.more(100).await;
    pair.replica.hang();
    let hung = Instant::now();
    // Past the first pause and some attempts after it.
    while hung.elapsed() < Duration::from_secs(3) {
        lists.more(20).await;
        let started = Instant::now();
        reader.get(&format!("/instances/{id}")).await.expect(200);
        assert!(
            started.elapsed() < Duration::from_millis(1500),
            "reads by id wait for the replica: {:?}",
            started.elapsed()
        );
    }
    let (failed, slowest) = lists.end().await;
    let before = pair.served().await.1;
    pair.replica.resume();
    assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), failed.first());
    let extra = slowest.saturating_sub(usual);
    // The replica's deadline is 250 ms, that of any statement two seconds; the difference allows for a busy machine.
    assert!(extra < Duration::from_millis(1500), "a list took {extra:?} longer than usual ({usual:?})");
    poll_until("the replica serves again", Duration::from_secs(60), async || {
        reader.get("/instances").await.expect(200);
        (pair.served().await.1 > before).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lagging_replica_hides_nothing_from_a_recent_writer() {
    let pair = Pair::start().await;
    let (reader, _) = pair.reader().await;
    pair.replica.sql("postgres").await.batch_execute("select pg_wal_replay_pause()").await.unwrap();
    for _ in 0..50 {
        let id = pair.client.post("/instances", json!({"image": pair.cluster.image})).await.instance();
        assert_eq!(pair.client.get(&format!("/instances/{id}")).await.expect(200).body["id"], id);
        let list = pair.client.get("/instances?limit=1").await.expect(200).body;
        assert_eq!(list["items"][0]["id"], id, "the writer does not see it: {list}");
    }
    // The control: the replica does lag, and another tenant is still served by it.
    let stale = pair.replica.sql(&pair.database).await;
    let there: i64 = stale.query_one("select count(*) from instances", &[]).await.unwrap().get(0);
    assert_eq!(there, 1, "the replica did not lag: nothing was shown");
    let before = pair.served().await.1;
    poll_until("the replica serves others", Duration::from_secs(60), async || {
        reader.get("/instances").await.expect(200);
        (pair.served().await.1 > before).then_some(())
    })
    .await;
    // The same for deletes: the list shows their result.
    let list = pair.client.get("/instances?limit=1").await.expect(200).body;
    let id = list["items"][0]["id"].as_str().unwrap().to_owned();
    pair.client.delete(&format!("/instances/{id}")).await.expect(202);
    let list = pair.client.get("/instances").await.expect(200).body;
    let shown = list["items"].as_array().unwrap().iter().find(|item| item["id"] == id.as_str());
    assert!(shown.is_none_or(|item| item["status"] == "deleting"), "{shown:?}");

    pair.replica.sql("postgres").await.batch_execute("select pg_wal_replay_resume()").await.unwrap();
    pair.caught_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pool_serves_all_reads_without_a_replica() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();

    client.get("/instances").await.expect(200);

    let health = client.get("/health/ready").await.expect(200).body;
    assert_eq!((&health["status"], health.get("replica")), (&json!("ready"), None));
    client.post("/instances", json!({"image": cluster.image})).await.expect(202);
    client.get("/instances").await.expect(200);
    assert!(cluster.in_redis("recent_write:").await.is_empty(), "without a replica no write is recorded");

    let metrics = client.get("/metrics").await.expect(200).text;
    assert!(!metrics.contains("replica") && !metrics.contains("db_fallback_total"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_sees_its_changes_of_other_tenants_keys_despite_lag() {
    let pair = Pair::start().await;
    let other = pair.cluster.spawn("serve");
    let writer = Client::new(&base_url(&other), &pair.cluster.key("acme", "admin"));
    let (here, there) = (("here", &pair.client), ("there", &writer));

    for ((process, admin), change) in
        [here, there].into_iter().flat_map(|by| ["patch", "revoke", "rotate"].map(|c| (by, c)))
    {
        let rival = pair.client.with_key(&pair.cluster.key(&format!("rival-{process}-{change}"), "admin"));
        let tenant = rival.get("/keys/self").await.expect(200).body["tenant_id"].as_str().unwrap().to_owned();
        // Created through another process, so that this one does not know the tenant as a writer.
        let body = json!({"name": "before", "scopes": ["keys:read"], "tenant_id": tenant});
        let made = writer.post("/keys", body).await.expect(201).body;
        let path = format!("/keys/{}", made["id"].as_str().unwrap());
        let list = async || pair.client.get(&format!("/keys?tenant_id={tenant}")).await.expect(200).text;
        pair.caught_up().await;
        pair.forget_writers().await;
        pair.pause_replay().await;
        let before = list().await;
        assert!(before.contains("before"));
        match change {
            "patch" => {
                drop(send(admin.request(Method::PATCH, &path).json(&json!({"name": "after"}))).await.expect(200))
            }
            "revoke" => drop(admin.delete(&path).await.expect(204)),
            _ => drop(admin.post(&format!("{path}/rotate"), json!({})).await.expect(201)),
        }
        assert_ne!(list().await, before, "{change} {process}: the list is from before");
        pair.replica.sql("postgres").await.batch_execute("select pg_wal_replay_resume()").await.unwrap();
    }
}

impl Pair {
    /// Returns the newest instance in the caller's list.
    async fn newest(client: &Client) -> String {
        let list = client.get("/instances?limit=1").await.expect(200).body;
        list["items"][0]["id"].as_str().unwrap_or_default().to_owned()
    }

    /// Starts another process, as behind the same load balancer, with a client of the same tenant.
    fn beside(&self) -> (App, Client) {
        let other = self.cluster.spawn("serve");
        let client = Client::new(&base_url(&other), &self.client.key);
        (other, client)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_through_one_process_is_in_lists_of_another_at_once() {
    let pair = Pair::start().await;
    let (_other, writer) = pair.beside();
    let post = async || writer.post("/instances", json!({"image": pair.cluster.image})).await.instance();
    post().await;
    pair.caught_up().await;
    pair.forget_writers().await;
    pair.pause_replay().await;
    for _ in 0..20 {
        let id = post().await;
        assert_eq!(Pair::newest(&pair.client).await, id, "another process does not see it");
        // Each write has to be recorded in Redis again.
        pair.forget_writers().await;
    }
    // The control: without the record in Redis, the other process lists the replica's old rows.
    let id = post().await;

    assert_eq!(Pair::newest(&pair.client).await, id);

    poll_until("the replica's list is from before", Duration::from_secs(60), async || {
        pair.forget_writers().await;
        (Pair::newest(&pair.client).await != id).then_some(())
    })
    .await;
    // Deletes are recorded as well.
    writer.delete(&format!("/instances/{id}")).await.expect(202);

    let list = pair.client.get("/instances").await.expect(200).body;
    let shown = list["items"].as_array().unwrap().iter().find(|item| item["id"] == id.as_str());
    assert!(shown.is_none_or(|item| item["status"] == "deleting"), "{shown:?}");

    // The record expires soon, and contains nothing but the tenant's id.
    let name = format!("app:{}:recent_write:*", pair.cluster.id().await);
    let keys = pair.redis.cli(&["--scan", "--pattern", &name]);
    assert!(keys.lines().count() > 1, "no write was recorded in Redis: {keys}");

    for key in keys.lines().filter(|key| !key.ends_with(":server")) {
        let left: i64 = pair.redis.cli(&["pttl", key]).trim().parse().unwrap();
        assert!(left <= 5000 && left != -1, "{key}: {left} ms");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn write_while_redis_hangs_is_recorded_when_it_resumes() {
    let pair = Pair::start().await;
    let (_other, writer) = pair.beside();
    // More writes than it takes until the breaker stops waiting for Redis, each without an earlier one that could hide
    // a lost record.
    let tenants: Vec<String> = (0..6).map(|n| pair.cluster.key(&format!("hung-{n}"), "admin")).collect();
    for key in &tenants {
        writer.with_key(key).get("/keys/self").await.expect(200);
        pair.client.with_key(key).get("/keys/self").await.expect(200);
    }

    // The control: without a recorded write the replica serves.
    poll_until("the replica serves", Duration::from_secs(60), async || {
        pair.forget_writers().await;
        let before = pair.served().await.1;
        pair.client.get("/instances").await.expect(200);
        (pair.served().await.1 > before).then_some(())
    })
    .await;

    pair.caught_up().await;
    pair.pause_replay().await;
    pair.redis.signal(Signal::SIGSTOP);
    let mut ids = Vec::new();
    for key in &tenants {
        ids.push(writer.with_key(key).post("/instances", json!({"image": pair.cluster.image})).await.instance());
    }
    pair.redis.signal(Signal::SIGCONT);
    for (key, id) in tenants.iter().zip(&ids) {
        assert_eq!(&Pair::newest(&pair.client.with_key(key)).await, id, "the other process does not see it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_read_the_primary_while_redis_is_down_and_just_after() {
    let mut pair = Pair::start().await;
    let (other, writer) = pair.beside();
    let post = async || writer.post("/instances", json!({"image": pair.cluster.image})).await.instance();
    let old = post().await;
    pair.caught_up().await;
    pair.pause_replay().await;
    // While Redis has no record of a write, lists are read from the replica.
    poll_until("the replica serves", Duration::from_secs(60), async || {
        let before = pair.served().await.1;
        pair.forget_writers().await;
        (Pair::newest(&pair.client).await == old && pair.served().await.1 > before).then_some(())
    })
    .await;

    pair.redis.kill();
    let body = json!({"image": pair.cluster.image});
    let id = writer.post("/instances", body.clone()).await.instance();
    for _ in 0..20 {
        assert_eq!(Pair::newest(&pair.client).await, id, "without Redis");
    }
    // Redis returns with its data, in which the record of a write is missing, and the process that made it has ended.
    let id = writer.post("/instances", body).await.instance();
    drop(other);
    pair.redis.restart();
    let back = Instant::now();
    while back.elapsed() < Duration::from_secs(3) {
        assert_eq!(Pair::newest(&pair.client).await, id, "{:?} after Redis came back", back.elapsed());
    }
    // Later the replica serves again: it is up to date.
    poll_until("the replica serves again", Duration::from_secs(60), async || {
        (Pair::newest(&pair.client).await == old).then_some(())
    })
    .await;
}
