//! Redis carries wake-ups and nothing else: whatever happens to Redis, accepted jobs run, because workers poll
//! Postgres.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use app::core::{
    id::JobId,
    queue::{job::JobKind, notify::ProvisionJob},
};
use futures_util::future;
use nix::sys::signal::Signal;
use serde_json::json;

use super::simulated_host::{assert_exactly_once, ledger};
use crate::support::{Client, Cluster, poll_until, proxy::Proxy, redis_server::RedisServer};

/// The time from one poll to the next, and all the work on a busy machine. `pause` measures the polls themselves.
const POLL_TIMEOUT: Duration = Duration::from_secs(15);

/// Returns the median of the next five pauses between claims, by Postgres' clock. A process without processor time is
/// late with each claim, but by less than a pause.
async fn pause(cluster: &Cluster) -> Duration {
    let sql = cluster.sql().await;
    let claims = "select extract(epoch from query_start)::float8 from pg_stat_activity
                  where datname = current_database() and application_name = 'app-primary'
                    and query like '-- Claims at most %' and query_start > to_timestamp($1)";
    let now: f64 = sql.query_one("select extract(epoch from clock_timestamp())::float8", &[]).await.unwrap().get(0);
    let mut began: Vec<f64> = Vec::new();
    let pauses = poll_until("claims", Duration::from_secs(60), async || {
        for row in sql.query(claims, &[&now]).await.unwrap() {
            let at: f64 = row.get(0);
            if !began.contains(&at) {
                began.push(at);
            }
        }
        began.sort_by(f64::total_cmp);
        // A claim that returned jobs is followed by one more at once.
        let mut pauses: Vec<f64> =
            began.windows(2).map(|pair| pair[1] - pair[0]).filter(|pause| *pause > 0.1).collect();
        pauses.sort_by(f64::total_cmp);
        (pauses.len() >= 5).then_some(pauses)
    })
    .await;
    eprintln!("pauses between claims: {pauses:.2?} s");
    Duration::from_secs_f64(pauses[pauses.len() / 2])
}

async fn runs_within(client: &Client, id: &str, within: Duration) {
    let started = Instant::now();
    let instance = client.wait_for(id, "running").await;
    assert_eq!(instance["status"], "running", "{instance}");
    assert!(started.elapsed() < within, "{:?}", started.elapsed());
}

async fn post(client: &Client) -> String {
    let started = Instant::now();
    let id = client.post("/instances", json!({"image": "web:1"})).await.instance();
    assert!(started.elapsed() < Duration::from_secs(4), "the response waited for Redis: {:?}", started.elapsed());
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn flushing_redis_after_the_response_loses_no_job() {
    let (redis, other) = (RedisServer::start(), RedisServer::start());
    let mut cluster = Cluster::simulated().await;
    cluster.redis_url = redis.url();
    let (_api, client) = cluster.serve();
    // The worker listens on another Redis, so that no wake-up can reach it before the flush.
    cluster.redis_url = other.url();
    let _worker = cluster.work();

    let answer = client.post("/instances", json!({"image": "web:1"})).await.expect(202);
    let (id, job) = (answer.instance(), answer.job());
    let lists = redis.cli(&["--scan", "--pattern", "app:*:wakeups:*"]);
    let list = lists.trim();
    assert!(redis.cli(&["lrange", list, "0", "-1"]).contains(&job), "no notification was sent: {lists}");

    redis.cli(&["flushall"]);
    // If Redis were the queue, the job would be lost now.
    assert_eq!(redis.cli(&["--scan", "--pattern", "app:*:wakeups:*"]).trim(), "");
    assert_eq!(other.cli(&["dbsize"]).trim(), "0");

    runs_within(&client, &id, POLL_TIMEOUT).await;
    // No wake-up reaches the worker: these claims are polls.
    let pause = pause(&cluster).await;
    assert!(pause <= Duration::from_millis(2500), "{pause:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_run_by_polling_while_redis_is_down() {
    let mut redis = RedisServer::start();
    let mut cluster = Cluster::simulated().await;
    cluster.redis_url = redis.url();
    let (_api, client) = cluster.serve();
    let worker = cluster.work();
    let first = post(&client).await;
    runs_within(&client, &first, POLL_TIMEOUT).await;

    redis.kill();
    let ids = future::join_all((0..10).map(|_| post(&client))).await;
    future::join_all(ids.iter().map(|id| runs_within(&client, id, POLL_TIMEOUT))).await;
    // The worker has noticed that Redis is down, and polls more often: every half second, or a little more.
    let pause = pause(&cluster).await;
    assert!(pause < Duration::from_secs(1), "{pause:?}");

    redis.restart();
    // API and worker reconnect by themselves: a notification is sent and received again.
    poll_until("a notification that is received again", Duration::from_secs(30), async || {
        let id = post(&client).await;
        runs_within(&client, &id, POLL_TIMEOUT).await;
        let stats = redis.cli(&["info", "commandstats"]);
        (stats.contains("cmdstat_rpush") && stats.contains("cmdstat_blmpop")).then_some(())
    })
    .await;

    redis.signal(Signal::SIGSTOP);
    let ids = future::join_all((0..10).map(|_| post(&client))).await;
    future::join_all(ids.iter().map(|id| runs_within(&client, id, POLL_TIMEOUT))).await;
    redis.signal(Signal::SIGCONT);
    let last = post(&client).await;
    runs_within(&client, &last, POLL_TIMEOUT).await;
    assert!(!worker.log().contains("panicked"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_notifications_create_one_container() {
    let redis = RedisServer::start();
    let mut cluster = Cluster::simulated().await;
    // The API notifies on another Redis: the workers receive only the messages of this test.
    let (_api, client) = cluster.serve();
    cluster.redis_url = redis.url();

    let (mut workers, state) = (Vec::new(), cluster.state.path().to_owned());
    let dirs = [state.join("a"), state.join("b")];
    for (name, dir) in ["h1", "h2"].iter().zip(&dirs) {
        workers.push(cluster.set("APP_HOST_NAME", name).set("APP_STATE_DIR", dir.display()).work());
    }
    let id: uuid::Uuid = cluster.sql().await.query_one("select id from cluster", &[]).await.unwrap().get(0);
    let list = format!("app:{id}:wakeups:any");
    for _ in 0..5 {
        let answer = client.post("/instances", json!({"image": "web:1"})).await.expect(202);
        let message = ProvisionJob::new(answer.job().parse().unwrap(), JobKind::Provision).encode();
        for _ in 0..10 {
            redis.cli(&["rpush", &list, &message]);
        }
        runs_within(&client, &answer.instance(), POLL_TIMEOUT).await;
        let job = client.wait_for_job(&answer.job()).await;
        assert_eq!((&job["status"], &job["attempt"]), (&json!("succeeded"), &json!(1)), "{job}");
        let dirs: Vec<&Path> = dirs.iter().map(AsRef::as_ref).collect();
        assert_exactly_once(&ledger(&dirs), &answer.instance());
    }

    // I5: when all jobs are done, the list is empty.
    poll_until("an empty list", Duration::from_secs(30), async || {
        (redis.cli(&["llen", &list]).trim() == "0").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_for_jobs_that_are_taken_cost_one_claim_per_read() {
    const SLOTS: u64 = 4;
    const MESSAGES: u64 = 60;
    let redis = RedisServer::start();
    let mut cluster = Cluster::simulated().await;
    cluster.redis_url = redis.url();
    let proxy = Proxy::start(&cluster.database_url).await;
    // Only the worker uses the proxy: the test's own statements are not counted.
    let direct = std::mem::replace(&mut cluster.database_url, proxy.url.clone());
    // Heartbeats, maintenance and checks run at the start and then not for an hour.
    cluster.set("APP_LEASE_MS", 3_600_000).set("APP_RECHECK_MS", 3_600_000).set("APP_ORPHAN_GRACE_MS", 3_600_000);
    cluster.set("WORK_CONCURRENCY", SLOTS).set("DB_MAX_CONNS", 2);
    let _worker = cluster.work();
    cluster.database_url = direct;
    let list = format!("app:{}:wakeups:any", cluster.id().await);
    let message = ProvisionJob::new(JobId::new(), JobKind::Provision).encode();
    let read = async |messages: u64| {
        let messages = vec![message.as_str(); usize::try_from(messages).unwrap()];
        redis.cli(&[vec!["rpush", list.as_str()], messages].concat());
        poll_until("all messages read", Duration::from_secs(30), async || {
            (redis.cli(&["llen", &list]).trim() == "0").then_some(())
        })
        .await;
    };
    // The first read opens the connection, prepares statements, and includes the work done once at the start.
    read(SLOTS).await;
    pause(&cluster).await;

    let (trips, started) = (proxy.round_trips(), Instant::now());
    read(MESSAGES).await;
    // When the worker is back to its polls, all claims that the messages caused are done.
    let pause = pause(&cluster).await;

    let trips = proxy.round_trips() - trips;
    // One poll in 1.5 s (2 s less jitter), and one statement for the gauges in 5 s.
    let within = |period: f64| (started.elapsed().as_secs_f64() / period).ceil() as u64;
    assert!(pause > Duration::from_millis(1400), "{pause:?}");
    assert!(trips <= MESSAGES / SLOTS + within(1.5) + within(5.0) + 1, "{trips} round trips");
}
