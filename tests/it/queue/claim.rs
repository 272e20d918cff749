//! Claims called directly: each job is assigned once, tenants take turns, deletes go first, and jobs that cannot be
//! claimed do not block others.

use std::collections::HashSet;

use app::core::{
    db::{Consistency, ReadConn},
    id::JobId,
    queue::{claim::WorkerIdentity, rescue},
};
use futures_util::future;
use serde_json::json;
use tokio::sync::Barrier;

use super::fixture::{QueueFixture, TIMES, claim, delete, spec, tenant};

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_claims_never_assign_a_job_twice() {
    let fixture = QueueFixture::new().await;

    let jobs: HashSet<JobId> =
        fixture.create_many(fixture.tenant, &spec(128), 500).await.into_iter().map(|instance| instance.job).collect();
    let hosts = [
        fixture.register_worker("h1", None).await,
        fixture.register_worker("h2", None).await,
        fixture.register_worker("h3", None).await,
    ];
    let all_begin = Barrier::new(hosts.len());
    let race = hosts.map(|worker| {
        let (fixture, all_begin) = (&fixture, &all_begin);
        async move {
            let mut mine = Vec::new();
            // A claim that returns nothing ends the loop when no job is queued.
            for round in 0.. {
                // In the first rounds every host waits for the others, so that all of them take part in the race.
                if round < 3 {
                    all_begin.wait().await;
                }
                let got = claim(&fixture.db, worker, 16).await.unwrap().jobs;
                if got.is_empty() && fixture.count("select count(*) from jobs where status = 'queued'").await == 0 {
                    break;
                }
                mine.extend(got.into_iter().map(|job| (job.lease.job, job.lease.token)));
            }
            mine
        }
    });
    let claimed = future::join_all(race).await;

    assert!(claimed.iter().all(|mine| mine.len() > 20), "one host alone did it: no race");

    let claimed = claimed.concat();
    assert_eq!(claimed.len(), 500);
    assert_eq!(claimed.iter().map(|(job, _)| *job).collect::<HashSet<_>>(), jobs);
    assert!(claimed.iter().all(|(_, token)| *token == 1));

    let doubly = "select count(*) from jobs j join instances i on i.id = j.instance_id where j.host_id is distinct from i.host_id";
    assert_eq!(fixture.count(doubly).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn host_claims_only_what_fits_its_memory() {
    let fixture = QueueFixture::new().await;
    let worker = fixture.register_worker("h1", Some(4 * 128)).await;

    fixture.create_many(fixture.tenant, &spec(128), 30).await;
    let placed = "select count(*) from instances where host_id is not null and status <> 'deleted'";
    let mut running = fixture.claim_next(worker, 16).await;
    assert_eq!(running.len(), 4);

    for provision in &running {
        fixture.succeed(provision).await;
    }
    let mut done = 4;
    while let Some(oldest) = running.pop() {
        assert!(fixture.claim_next(worker, 16).await.is_empty(), "no room");
        assert!(fixture.count(placed).await <= 4);
        delete(&fixture.db, fixture.tenant, oldest.lease.instance).await.unwrap().unwrap();
        // The capacity is free only when the host has reported the deletion.
        let delete = fixture.claim_next(worker, 16).await;
        assert_eq!(delete.len(), 1, "the delete and nothing else");
        fixture.succeed(&delete[0]).await;
        for next in fixture.claim_next(worker, 16).await {
            fixture.succeed(&next).await;
            running.insert(0, next);
            done += 1;
        }
    }

    assert_eq!(done, 30);
}

/// Deep in the queue and with one slot: a claim that reads only the first jobs would never find the one that fits.
#[tokio::test(flavor = "multi_thread")]
async fn unclaimable_jobs_do_not_block_those_behind_them() {
    let fixture = QueueFixture::new().await;
    let worker = fixture.register_worker("h1", Some(512)).await;
    let used = fixture.create(fixture.tenant, &spec(256)).await;
    assert_eq!(fixture.claim_next(worker, 1).await[0].lease.job, used.job);

    let big = fixture.create_many(fixture.tenant, &spec(512), 30).await;
    let unknown = fixture.create_many(fixture.tenant, &spec(64), 30).await;
    let ids: Vec<_> = unknown.iter().map(|instance| instance.job.uuid()).collect();
    fixture.sql.execute("update jobs set kind = 'dance' where id = any($1)", &[&ids]).await.unwrap();
    let elsewhere = {
        let mut spec = spec(64);
        spec.placement.host = Some("h2".into());
        fixture.create_many(fixture.tenant, &spec, 30).await
    };
    let small = fixture.create(fixture.tenant, &spec(128)).await;

    let got = fixture.claim_next(worker, 1).await;
    assert_eq!(got.iter().map(|job| job.lease.job).collect::<Vec<_>>(), [small.job]);
    assert!(fixture.claim_next(worker, 1).await.is_empty());
    let queued = fixture.count("select count(*) from jobs where status = 'queued'").await;
    assert_eq!(queued, i64::try_from(big.len() + unknown.len() + elsewhere.len()).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_does_not_delay_other_tenants_and_deletes_go_first() {
    let fixture = QueueFixture::new().await;
    let worker = fixture.register_worker("h1", None).await;
    let old = fixture.create(fixture.tenant, &spec(1)).await;
    fixture.succeed(&fixture.claim_next(worker, 1).await[0]).await;

    fixture.create_many(fixture.tenant, &spec(1), 200).await;
    let busy = fixture.claim_next(worker, 8).await;
    assert_eq!(busy.len(), 8, "a tenant alone gets all slots");
    let other = tenant(&fixture.db, "other").await;
    let single = fixture.create(other, &spec(1)).await;
    delete(&fixture.db, fixture.tenant, old.id).await.unwrap().unwrap();

    let next = fixture.claim_next(worker, 1).await;
    assert_eq!((next[0].kind.as_str(), next[0].lease.instance), ("delete", old.id), "the newest job is claimed first");
    // The flooding tenant has half of the slots already: while the other tenant waits, it gets no more.
    let next = fixture.claim_next(worker, 1).await;
    assert_eq!(next.iter().map(|job| job.lease.job).collect::<Vec<_>>(), [single.job]);
    assert_eq!(fixture.claim_next(worker, 7).await.len(), 7, "no other tenant waits any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn next_slot_goes_to_the_tenant_that_has_the_fewest() {
    let fixture = QueueFixture::new().await;
    let worker = WorkerIdentity { slots: 4, ..fixture.register_worker("h1", None).await };
    let late = tenant(&fixture.db, "late").await;
    fixture.create_many(fixture.tenant, &spec(1), 32).await;
    let mut of_early = fixture.claim_next(worker, 4).await;
    assert_eq!(of_early.len(), 4, "a tenant alone gets all slots");
    let late_jobs: HashSet<JobId> =
        fixture.create_many(late, &spec(1), 8).await.into_iter().map(|instance| instance.job).collect();

    // In each round one of the early tenant's jobs ends. Slots of early and late before each claim: 4 and 0, 3 and 1, 2
    // and 2, 2 and 2.
    let mut turns = Vec::new();
    for _ in 0..4 {
        fixture.succeed(&of_early.remove(0)).await;
        let next = fixture.claim_next(worker, 1).await.remove(0);
        turns.push(late_jobs.contains(&next.lease.job));
        if !late_jobs.contains(&next.lease.job) {
            of_early.push(next);
        }
    }

    assert_eq!(turns, [true, true, false, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_claim_divides_its_slots_among_the_tenants_that_wait() {
    let fixture = QueueFixture::new().await;
    let worker = fixture.register_worker("h1", None).await;
    let (second, third) = (tenant(&fixture.db, "second").await, tenant(&fixture.db, "third").await);
    for (tenant, count) in [(fixture.tenant, 32), (second, 32), (third, 2)] {
        fixture.create_many(tenant, &spec(1), count).await;
    }

    fixture.claim_next(worker, 12).await;

    let counts = "select array_agg(n order by n) from
                  (select count(*) as n from jobs where status = 'running' group by tenant_id) t";
    let counts: Vec<i64> = fixture.sql.query_one(counts, &[]).await.unwrap().get(0);
    assert_eq!(counts, [2, 5, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn claim_reports_whether_jobs_are_left() {
    let fixture = QueueFixture::new().await;
    let worker = fixture.register_worker("h1", Some(256)).await;
    assert!(!claim(&fixture.db, worker, 4).await.unwrap().more, "nothing waits");

    fixture.create(fixture.tenant, &spec(64)).await;
    assert!(!claim(&fixture.db, worker, 4).await.unwrap().more, "that was the only job");

    fixture.create_many(fixture.tenant, &spec(32), 3).await;
    assert!(claim(&fixture.db, worker, 2).await.unwrap().more, "one is left");
    assert!(!claim(&fixture.db, worker, 2).await.unwrap().more, "that was the last job");

    // Each of the two fits now, but not both together: once the smaller one is claimed, the other does not fit any
    // more.
    fixture.create_many(fixture.tenant, &spec(64), 2).await;
    let first = claim(&fixture.db, worker, 4).await.unwrap();
    assert_eq!((first.jobs.len(), first.more), (1, true));
    let second = claim(&fixture.db, worker, 4).await.unwrap();
    assert_eq!((second.jobs.len(), second.more), (0, false), "no reason to claim again at once");

    // A claim does not wait for a row that another transaction has locked, and reports that a further claim may find
    // it.
    let held = fixture.create(fixture.tenant, &spec(32)).await;
    fixture.sql.batch_execute("begin").await.unwrap();
    fixture.sql.query("select 1 from instances where id = $1 for update", &[&held.id.uuid()]).await.unwrap();
    let contended = claim(&fixture.db, worker, 4).await.unwrap();
    fixture.sql.batch_execute("rollback").await.unwrap();
    assert_eq!((contended.jobs.len(), contended.more), (0, true), "locked, not gone");
    assert_eq!(fixture.claim_next(worker, 4).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_queue_assigns_nothing_until_resumed() {
    let fixture = QueueFixture::new().await;
    let worker = fixture.register_worker("h1", None).await;

    fixture.create(fixture.tenant, &spec(1)).await;

    for scope in ["all".to_owned(), format!("host:{}", worker.host)] {
        fixture.sql.execute("insert into queue_control (scope, paused) values ($1, true)", &[&scope]).await.unwrap();
        assert!(fixture.claim_next(worker, 1).await.is_empty());
        fixture.sql.execute("update queue_control set paused = false", &[]).await.unwrap();
    }

    assert_eq!(fixture.claim_next(worker, 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn claim_respects_fenced_draining_and_superseded_hosts() {
    let fixture = QueueFixture::new().await;
    let older = fixture.register_worker("h1", None).await;
    let worker = fixture.register_worker("h1", None).await;
    let gone = fixture.create(fixture.tenant, &spec(1)).await;
    assert!(fixture.claim_next(older, 1).await.is_empty());
    assert!(fixture.claim_next(WorkerIdentity { epoch: worker.epoch - 1, ..worker }, 1).await.is_empty());
    fixture.succeed(&fixture.claim_next(worker, 1).await[0]).await;

    fixture.create(fixture.tenant, &spec(1)).await;
    delete(&fixture.db, fixture.tenant, gone.id).await.unwrap().unwrap();
    fixture.sql.execute("update hosts set state = 'draining'", &[]).await.unwrap();
    let got = fixture.claim_next(worker, 16).await;
    assert_eq!(got.iter().map(|job| job.kind.as_str()).collect::<Vec<_>>(), ["delete"]);
    fixture.sql.execute("update hosts set state = 'fenced'", &[]).await.unwrap();
    assert!(fixture.claim_next(worker, 16).await.is_empty());
}

/// A value that this release does not know fails its own job, not the batch: its lease expires until the job fails.
#[tokio::test(flavor = "multi_thread")]
async fn row_that_cannot_be_read_fails_only_its_own_job() {
    let fixture = QueueFixture::new().await;
    let worker = fixture.register_worker("h1", None).await;

    let mut broken = HashSet::new();
    for change in [
        r#"command = '{"a": 1}'"#,
        r#"env = '{"A": 1}'"#,
        r#"ports = '[{"container": 80, "host": 20000, "protocol": "icmp"}]'"#,
        "address = '::1'",
    ] {
        let instance = fixture.create(fixture.tenant, &spec(1)).await;
        let update = format!("update instances set {change} where id = '{}'", instance.id);
        assert_eq!(fixture.sql.execute(&update, &[]).await.unwrap(), 1);
        broken.insert(instance.job);
    }
    fixture.create_many(fixture.tenant, &spec(1), 3).await;

    let got = fixture.claim_next(worker, 16).await;

    assert_eq!(got.len(), 3);
    for job in got {
        assert!(!broken.contains(&job.lease.job));
        fixture.succeed(&job).await;
    }
    for _ in 0..3 {
        let expire = "update jobs set lease_until = now() - interval '1 s' where status = 'running'";
        assert_eq!(fixture.sql.execute(expire, &[]).await.unwrap(), 4);
        assert_eq!(rescue::run_round(&fixture.db, TIMES).await.unwrap().expired_leases, 4);
        fixture.sql.execute("update jobs set run_at = now() where status = 'queued'", &[]).await.unwrap();
        assert!(fixture.claim_next(worker, 16).await.is_empty());
    }
    for job in broken {
        let job = fixture.job(job).await;
        assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("attempts_exhausted")), "{job}");
    }
}

/// The worker's log lines name the request that made a job.
#[tokio::test(flavor = "multi_thread")]
async fn claim_returns_the_request_id_of_its_job() {
    let fixture = QueueFixture::new().await;
    let worker = fixture.register_worker("h1", None).await;
    let with_request = fixture.create(fixture.tenant, &spec(1)).await.job;
    fixture.create(fixture.tenant, &spec(1)).await;
    let update = "update jobs set request_id = case when id = $1 then 'r-1' end";
    fixture.sql.execute(update, &[&with_request.uuid()]).await.unwrap();

    let claimed = fixture.claim_next(worker, 2).await;

    assert_eq!(claimed.len(), 2);
    for job in claimed {
        assert_eq!(job.request_id.as_deref(), (job.lease.job == with_request).then_some("r-1"));
    }
}

/// Returns how many rows of jobs and instances were read so far, by the server's statistics; `fixture.db` has one
/// connection.
async fn rows_read(fixture: &QueueFixture) -> i64 {
    // A connection reports its statistics once a second at most, unless it is forced to.
    const FLUSH: &str = "select pg_stat_force_next_flush()";
    fixture.db.read(Consistency::Primary, |c: ReadConn| async move { c.query(FLUSH, &[]).await }).await.unwrap();
    fixture.sql.execute(FLUSH, &[]).await.unwrap();
    fixture
        .count(
            "select sum(coalesce(idx_tup_fetch, 0) + coalesce(seq_tup_read, 0))::bigint from pg_stat_user_tables
         where relname in ('jobs', 'instances')",
        )
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn claim_reads_a_few_rows_per_tenant_in_a_long_queue() {
    const TENANTS: i64 = 500;
    const JOBS: i64 = 20_000;
    let fixture = QueueFixture::new().await;
    let worker = fixture.register_worker("h1", Some(1_000_000)).await;

    fixture
        .sql
        .batch_execute(
            "insert into tenants (id, name) select gen_random_uuid(), 't' || n from generate_series(1, 500) n;
             insert into instances (id, tenant_id, name, image, cpu_millis, memory_mib, network_id, network_name, cidr,
                                    address, mac, job_id)
               select gen_random_uuid(), t.id, 'i' || n, 'web:1', 100, 128, gen_random_uuid(), 'default', '10.0.0.0/8',
                      '10.1.1.1', '02:00', gen_random_uuid()
               from tenants t, generate_series(1, 40) n where t.name <> 'acme';
             insert into jobs (id, kind, tenant_id, instance_id, generation, seq)
               select job_id, 'provision', tenant_id, id, 1, 1 from instances;
             analyze jobs, instances, tenants",
        )
        .await
        .unwrap();
    for turn in 1..=11 {
        let before = rows_read(&fixture).await;
        let got = fixture.claim_next(worker, 16).await;
        let read = rows_read(&fixture).await - before;
        // About three and a half rows of each tenant. Sixteen of each, as many as are claimed, would be ten times that.
        assert!(read < 6 * TENANTS, "turn {turn}: {read} rows");
        assert_eq!(got.len(), 16);
        let tenants = fixture.count("select count(distinct tenant_id) from jobs where status = 'running'").await;
        assert_eq!(tenants, turn * 16, "tenants take turns");
    }
    fixture.sql.execute("update hosts set memory_mib = 1", &[]).await.unwrap();
    // The most expensive case: nothing fits, and the claim reads the whole queue, once.
    let before = rows_read(&fixture).await;

    assert!(fixture.claim_next(worker, 16).await.is_empty());

    let read = rows_read(&fixture).await - before;
    assert!((2 * JOBS..3 * JOBS).contains(&read), "{read} rows");
}
