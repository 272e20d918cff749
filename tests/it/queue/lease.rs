//! Leases that are extended, lost and fenced, and transient failures that are retried.

use std::time::{Duration, Instant};

use app::core::queue::{finish::Outcome, heartbeat::heartbeat, rescue};
use futures_util::future;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{
    crash::{column, wait_for_step},
    fixture::{LEASE, QueueFixture, TIMES, spec},
    simulated_host::{assert_exactly_once, ledger},
};
use crate::support::{Cluster, poll_until, proxy::Proxy};

const POLL_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn job_longer_than_its_lease_keeps_it() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("SIMULATED_LATENCY_MS", 1400);
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();

    let started = Instant::now();
    let answer = client.post("/instances", json!({"image": "web:1"})).await.expect(202);
    let instance = client.wait_for(&answer.instance(), "running").await;
    assert_eq!(instance["status"], "running", "{instance}");
    // Five steps of at least 0.7 s each.
    assert!(started.elapsed() > LEASE, "the job took less than a lease");

    let sql = cluster.sql().await;
    assert_eq!(column(&sql, &answer.job(), "lease_token").await.as_deref(), Some("1"), "the job was claimed again");
    assert_eq!(column(&sql, &answer.job(), "crashes").await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_that_lost_its_lease_stops_and_writes_nothing() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("SIMULATED_LATENCY_MS", 600);
    let (_api, client) = cluster.serve();
    let worker = cluster.work();
    let sql = cluster.sql().await;

    let answer = client.post("/instances", json!({"image": "web:1"})).await.expect(202);
    wait_for_step(&client, &answer.job(), "network").await;
    // As if another worker had claimed the job.
    let query =
        "update jobs set lease_token = lease_token + 1, lease_id = gen_random_uuid(), steps = '[]' where id::text = $1";
    sql.execute(query, &[&answer.job()]).await.unwrap();
    worker.line("lease lost; stopping the attempt");
    let creates = ledger(&[cluster.state.path()]).len();
    poll_until("the lease that no worker has to expire", POLL_TIMEOUT, async || {
        let job = client.get(&format!("/jobs/{}", answer.job())).await.body;
        if job["crashes"] == 0 {
            assert_eq!((&job["status"], &job["steps"]), (&json!("running"), &json!([])), "the worker wrote: {job}");
            assert_eq!(ledger(&[cluster.state.path()]).len(), creates, "the worker went on");
            return None;
        }
        Some(())
    })
    .await;

    let instance = client.wait_for(&answer.instance(), "running").await;

    assert_eq!(instance["status"], "running", "{instance}");
    assert_exactly_once(&ledger(&[cluster.state.path()]), &answer.instance());
    assert_eq!(column(&sql, &answer.job(), "lease_token").await.as_deref(), Some("3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_cut_off_from_postgres_fences_itself() {
    let mut cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let sql = cluster.sql().await;
    let proxy = Proxy::start(&cluster.database_url).await;
    cluster.database_url = proxy.url.clone();
    cluster.set("SIMULATED_LATENCY_MS", 1800);
    let worker = cluster.work();
    let create = || async { client.post("/instances", json!({"image": "web:1"})).await.expect(202) };
    let answers = future::join_all((0..4).map(|_| create())).await;
    for answer in &answers {
        wait_for_step(&client, &answer.job(), "network").await;
    }
    proxy.cut();
    let cut_at = OffsetDateTime::now_utc();
    poll_until("all of them queued again", POLL_TIMEOUT, async || {
        let row = sql.query_one("select count(*) from jobs where status = 'running'", &[]).await.unwrap();
        (row.get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    // By then the worker has stopped: it stops after five sixths of the lease, on a busy machine a little later, but
    // before another worker may have the job. One that went on would have three steps to go, of 0.9 s to 2.7 s each.
    let state = "select jsonb_agg(jsonb_build_array(id, status, steps, lease_token) order by id) from jobs";
    let before: Value = sql.query_one(state, &[]).await.unwrap().get(0);
    worker.line("heartbeat failed");
    let last = ledger(&[cluster.state.path()]).last().map(|entry| entry.at);
    assert!(last.is_none_or(|last| last < cut_at + LEASE), "{last:?}, cut {cut_at}");
    assert_eq!(sql.query_one(state, &[]).await.unwrap().get::<_, Value>(0), before);

    proxy.heal();
    for answer in &answers {
        let instance = client.wait_for(&answer.instance(), "running").await;
        assert_eq!(instance["status"], "running", "{instance}");
        assert_exactly_once(&ledger(&[cluster.state.path()]), &answer.instance());
        assert_eq!(column(&sql, &answer.job(), "lease_token").await.as_deref(), Some("2"));
        let query = "select count(*) from events where kind = 'instance.running' and instance_id::text = $1";
        assert_eq!(sql.query_one(query, &[&answer.instance()]).await.unwrap().get::<_, i64>(0), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flaky_operations_are_retried_until_running_or_failed() {
    let mut cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    // Redis cannot be reached at this address, so that the worker polls twice a second.
    cluster.redis_url = format!("unix:{}/none.sock", cluster.state.path().display());
    // One attempt in thirteen passes all five steps, so that some of thirty succeed, except once in 10^8 runs.
    cluster.set("SIMULATED_FAIL_RATE", 0.4).set("SIMULATED_LATENCY_MS", 2).set("WORK_CONCURRENCY", 64);
    let _worker = cluster.work();

    let create = || async { client.post("/instances", json!({"image": "web:1"})).await.expect(202) };
    let answers = future::join_all((0..30).map(|_| create())).await;
    let sql = cluster.sql().await;
    let mut longest = 0.0f64;
    poll_until("all jobs ended", Duration::from_secs(120), async || {
        let waits = "select max(extract(epoch from run_at - now()))::float8 from jobs where status = 'queued'";
        longest = longest.max(sql.query_one(waits, &[]).await.unwrap().get::<_, Option<f64>>(0).unwrap_or(0.0));
        // Back-off is skipped: eight attempts take four minutes otherwise.
        sql.batch_execute("update jobs set run_at = now() where status = 'queued' and run_at > now()").await.unwrap();
        let left = sql.query_one("select count(*) from jobs where finished_at is null", &[]).await.unwrap();
        (left.get::<_, i64>(0) == 0).then_some(())
    })
    .await;

    assert!(longest > 20.0, "pauses grow: {longest} s");

    let mut given_up = 0;
    for answer in &answers {
        let job = client.wait_for_job(&answer.job()).await;
        let instance = client.get(&format!("/instances/{}", answer.instance())).await.body;
        match job["status"].as_str().unwrap() {
            "succeeded" => assert_eq!(instance["status"], "running", "{instance}"),
            "failed" => {
                given_up += 1;
                assert_eq!(
                    (&job["error"]["code"], &job["attempt"]),
                    (&json!("attempts_exhausted"), &json!(8)),
                    "{job}"
                );
                assert_eq!(instance["status"], "failed", "{instance}");
            }
            _ => panic!("{job}"),
        }
    }

    assert!(given_up < 30, "none of them came through");
}

/// Registering a worker skips jobs that are locked, since the earlier worker is about to extend their leases. The
/// earlier worker must not extend them a second time.
#[tokio::test(flavor = "multi_thread")]
async fn job_not_taken_back_at_boot_is_kept_for_one_lease_only() {
    let fixture = QueueFixture::new().await;
    let earlier = fixture.register_worker("h1", None).await;
    fixture.create_many(fixture.tenant, &spec(1), 2).await;
    let jobs = fixture.claim_next(earlier, 2).await;
    let [kept, given_back] = jobs.as_slice() else { panic!("{jobs:?}") };

    // The earlier worker's heartbeat is in progress while the next one registers.
    let mut beating = fixture.cluster.sql().await;
    let transaction = beating.transaction().await.unwrap();
    let beat = "update jobs set lease_until = now() + interval '3 s' where id = $1";
    assert_eq!(transaction.execute(beat, &[&kept.lease.job.uuid()]).await.unwrap(), 1);
    let next = fixture.register_worker("h1", None).await;
    transaction.commit().await.unwrap();
    assert_eq!(fixture.job(given_back.lease.job).await["status"], "queued");
    let job = fixture.job(kept.lease.job).await;
    assert_eq!((&job["status"], &job["lease_boot"]), (&json!("running"), &json!(earlier.boot.uuid())), "{job}");

    // That heartbeat was the last one; when the lease has expired, the next worker gets the job.
    assert!(heartbeat(&fixture.db, earlier, &[(kept.lease, None)], LEASE).await.unwrap().is_none());
    assert_eq!(fixture.job(kept.lease.job).await, job, "a lost lease wrote");
    fixture
        .sql
        .batch_execute("update jobs set lease_until = now() - interval '1 s' where status = 'running'")
        .await
        .unwrap();
    assert_eq!(rescue::run_round(&fixture.db, TIMES).await.unwrap().expired_leases, 1);
    fixture.sql.batch_execute("update jobs set run_at = now()").await.unwrap();
    let claimed = fixture.claim_next(next, 2).await;
    assert!(claimed.iter().any(|claimed| claimed.lease.job == kept.lease.job), "{claimed:?}");
    let beats =
        heartbeat(&fixture.db, next, &[(claimed[0].lease, None), (claimed[1].lease, None)], LEASE).await.unwrap();
    assert_eq!(beats.map(|beats| beats.len()), Some(2), "its own are extended");
}

/// Between the rescue's read and its write a heartbeat may extend the lease; the rescue must notice that.
#[tokio::test(flavor = "multi_thread")]
async fn heartbeat_that_commits_first_prevents_a_rescue() {
    let fixture = QueueFixture::new().await;
    let worker = fixture.register_worker("h1", None).await;
    fixture.create(fixture.tenant, &spec(1)).await;
    let job = fixture.claim_next(worker, 1).await.remove(0);
    fixture.sql.batch_execute("update jobs set lease_until = now() - interval '1 s'").await.unwrap();

    // The heartbeat's transaction is open while the rescue reads the jobs.
    let mut beating = fixture.cluster.sql().await;
    let transaction = beating.transaction().await.unwrap();
    transaction.batch_execute("update jobs set lease_until = now() + interval '3 s'").await.unwrap();
    let rescued = rescue::run_round(&fixture.db, TIMES).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(rescued.expired_leases, 0);
    let beats = heartbeat(&fixture.db, worker, &[(job.lease, None)], LEASE).await.unwrap().unwrap();
    assert!(beats.contains_key(&job.lease.job));
    fixture.finish(&job, Outcome::Succeeded { container_id: None }).await;
}
