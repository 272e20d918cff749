//! Who gets which job: once each, in turn, what goes first, and what is looked past. The statements called directly.

use std::collections::HashSet;

use app::core::{
    db::{Consistency, ReadConn},
    id::JobId,
    queue::{claim::WorkerIdentity, rescue},
};
use futures_util::future;
use serde_json::json;
use tokio::sync::Barrier;

use super::lab::{QueueFixture, TIMES, claim, delete, spec, tenant};

#[tokio::test(flavor = "multi_thread")]
async fn of_five_hundred_jobs_that_hosts_race_for_each_is_claimed_once() {
    let lab = QueueFixture::new().await;
    let jobs: HashSet<JobId> =
        lab.create_many(lab.tenant, &spec(128), 500).await.into_iter().map(|instance| instance.job).collect();
    let hosts = [lab.host("h1", None).await, lab.host("h2", None).await, lab.host("h3", None).await];
    let all_begin = Barrier::new(hosts.len());
    let race = hosts.map(|me| {
        let (lab, all_begin) = (&lab, &all_begin);
        async move {
            let mut mine = Vec::new();
            // Until an empty hand says that nothing is left.
            for round in 0.. {
                // Nobody is done before everybody has begun.
                if round < 3 {
                    all_begin.wait().await;
                }
                let got = claim(&lab.db, me, 16).await.unwrap().jobs;
                if got.is_empty() && lab.count("select count(*) from jobs where status = 'queued'").await == 0 {
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
    assert_eq!(lab.count(doubly).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_room_for_four_takes_four_of_thirty_and_the_next_when_one_is_gone() {
    let lab = QueueFixture::new().await;
    let me = lab.host("h1", Some(4 * 128)).await;
    lab.create_many(lab.tenant, &spec(128), 30).await;
    let placed = "select count(*) from instances where host_id is not null and status <> 'deleted'";
    let mut running = lab.claim_next(me, 16).await;
    assert_eq!(running.len(), 4);
    for provision in &running {
        lab.succeed(provision).await;
    }
    let mut done = 4;
    while let Some(oldest) = running.pop() {
        assert!(lab.claim_next(me, 16).await.is_empty(), "no room");
        assert!(lab.count(placed).await <= 4);
        delete(&lab.db, lab.tenant, oldest.lease.instance).await.unwrap().unwrap();
        // Not before its host says that it is gone.
        let delete = lab.claim_next(me, 16).await;
        assert_eq!(delete.len(), 1, "the delete and nothing else");
        lab.succeed(&delete[0]).await;
        for next in lab.claim_next(me, 16).await {
            lab.succeed(&next).await;
            running.insert(0, next);
            done += 1;
        }
    }
    assert_eq!(done, 30);
}

/// Deep in the queue and with one slot: a claim that looks at the first jobs only would find nothing for ever.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_cannot_go_now_do_not_hold_back_those_behind_them() {
    let lab = QueueFixture::new().await;
    let me = lab.host("h1", Some(512)).await;
    let used = lab.create(lab.tenant, &spec(256)).await;
    assert_eq!(lab.claim_next(me, 1).await[0].lease.job, used.job);

    let big = lab.create_many(lab.tenant, &spec(512), 30).await;
    let unknown = lab.create_many(lab.tenant, &spec(64), 30).await;
    let ids: Vec<_> = unknown.iter().map(|instance| instance.job.uuid()).collect();
    lab.sql.execute("update jobs set kind = 'dance' where id = any($1)", &[&ids]).await.unwrap();
    let elsewhere = {
        let mut spec = spec(64);
        spec.placement.host = Some("h2".into());
        lab.create_many(lab.tenant, &spec, 30).await
    };
    let small = lab.create(lab.tenant, &spec(128)).await;

    let got = lab.claim_next(me, 1).await;
    assert_eq!(got.iter().map(|job| job.lease.job).collect::<Vec<_>>(), [small.job]);
    assert!(lab.claim_next(me, 1).await.is_empty());
    let queued = lab.count("select count(*) from jobs where status = 'queued'").await;
    assert_eq!(queued, i64::try_from(big.len() + unknown.len() + elsewhere.len()).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tenants_flood_does_not_keep_another_waiting_and_deletes_go_first() {
    let lab = QueueFixture::new().await;
    let me = lab.host("h1", None).await;
    let old = lab.create(lab.tenant, &spec(1)).await;
    lab.succeed(&lab.claim_next(me, 1).await[0]).await;

    lab.create_many(lab.tenant, &spec(1), 200).await;
    let busy = lab.claim_next(me, 8).await;
    assert_eq!(busy.len(), 8, "alone, it may have what it wants");
    let other = tenant(&lab.db, "other").await;
    let single = lab.create(other, &spec(1)).await;
    delete(&lab.db, lab.tenant, old.id).await.unwrap().unwrap();

    let next = lab.claim_next(me, 1).await;
    assert_eq!((next[0].kind.as_str(), next[0].lease.instance), ("delete", old.id), "the newest job, and the first");
    // The flood has half of the slots already: while the other waits, it gets no more.
    let next = lab.claim_next(me, 1).await;
    assert_eq!(next.iter().map(|job| job.lease.job).collect::<Vec<_>>(), [single.job]);
    assert_eq!(lab.claim_next(me, 7).await.len(), 7, "nobody else waits any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn next_slot_goes_to_the_tenant_that_has_the_fewest() {
    let lab = QueueFixture::new().await;
    let me = WorkerIdentity { slots: 4, ..lab.host("h1", None).await };
    let late = tenant(&lab.db, "late").await;
    lab.create_many(lab.tenant, &spec(1), 32).await;
    let mut of_early = lab.claim_next(me, 4).await;
    assert_eq!(of_early.len(), 4, "alone, it may have all slots");
    let late_jobs: HashSet<JobId> =
        lab.create_many(late, &spec(1), 8).await.into_iter().map(|instance| instance.job).collect();

    // Each round one of the early tenant's jobs ends. Held by early and late: 4 and 0, 3 and 1, 2 and 2, 2 and 2, 2 and 2.
    let mut turns = Vec::new();
    for _ in 0..4 {
        lab.succeed(&of_early.remove(0)).await;
        let next = lab.claim_next(me, 1).await.remove(0);
        turns.push(late_jobs.contains(&next.lease.job));
        if !late_jobs.contains(&next.lease.job) {
            of_early.push(next);
        }
    }

    assert_eq!(turns, [true, true, false, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_claim_divides_its_slots_among_the_tenants_that_wait() {
    let lab = QueueFixture::new().await;
    let me = lab.host("h1", None).await;
    let (second, third) = (tenant(&lab.db, "second").await, tenant(&lab.db, "third").await);
    for (tenant, count) in [(lab.tenant, 32), (second, 32), (third, 2)] {
        lab.create_many(tenant, &spec(1), count).await;
    }

    lab.claim_next(me, 12).await;

    let counts = "select array_agg(n order by n) from
                  (select count(*) as n from jobs where status = 'running' group by tenant_id) t";
    let counts: Vec<i64> = lab.sql.query_one(counts, &[]).await.unwrap().get(0);
    assert_eq!(counts, [2, 5, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn claim_tells_whether_jobs_are_left() {
    let lab = QueueFixture::new().await;
    let me = lab.host("h1", Some(256)).await;
    assert!(!claim(&lab.db, me, 4).await.unwrap().more, "nothing waits");

    lab.create(lab.tenant, &spec(64)).await;
    assert!(!claim(&lab.db, me, 4).await.unwrap().more, "it was the only one");

    lab.create_many(lab.tenant, &spec(32), 3).await;
    assert!(claim(&lab.db, me, 2).await.unwrap().more, "one is left");
    assert!(!claim(&lab.db, me, 2).await.unwrap().more, "it was the last");

    // Each of them fits now, both together do not: with the smaller one claimed, the other does not fit any more.
    lab.create_many(lab.tenant, &spec(64), 2).await;
    let first = claim(&lab.db, me, 4).await.unwrap();
    assert_eq!((first.jobs.len(), first.more), (1, true));
    let second = claim(&lab.db, me, 4).await.unwrap();
    assert_eq!((second.jobs.len(), second.more), (0, false), "no reason to claim again at once");

    // What another transaction holds is not waited for, and is a reason to claim again.
    let held = lab.create(lab.tenant, &spec(32)).await;
    lab.sql.batch_execute("begin").await.unwrap();
    lab.sql.query("select 1 from instances where id = $1 for update", &[&held.id.uuid()]).await.unwrap();
    let contended = claim(&lab.db, me, 4).await.unwrap();
    lab.sql.batch_execute("rollback").await.unwrap();
    assert_eq!((contended.jobs.len(), contended.more), (0, true), "locked, not gone");
    assert_eq!(lab.claim_next(me, 4).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_queue_gives_nothing_out_until_it_goes_on() {
    let lab = QueueFixture::new().await;
    let me = lab.host("h1", None).await;
    lab.create(lab.tenant, &spec(1)).await;
    for scope in ["all".to_owned(), format!("host:{}", me.host)] {
        lab.sql.execute("insert into queue_control (scope, paused) values ($1, true)", &[&scope]).await.unwrap();
        assert!(lab.claim_next(me, 1).await.is_empty());
        lab.sql.execute("update queue_control set paused = false", &[]).await.unwrap();
    }
    assert_eq!(lab.claim_next(me, 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_fenced_host_nor_an_older_boot_claims_and_a_draining_host_only_deletes() {
    let lab = QueueFixture::new().await;
    let older = lab.host("h1", None).await;
    let me = lab.host("h1", None).await;
    let gone = lab.create(lab.tenant, &spec(1)).await;
    assert!(lab.claim_next(older, 1).await.is_empty());
    assert!(lab.claim_next(WorkerIdentity { epoch: me.epoch - 1, ..me }, 1).await.is_empty());
    lab.succeed(&lab.claim_next(me, 1).await[0]).await;

    lab.create(lab.tenant, &spec(1)).await;
    delete(&lab.db, lab.tenant, gone.id).await.unwrap().unwrap();
    lab.sql.execute("update hosts set state = 'draining'", &[]).await.unwrap();
    let got = lab.claim_next(me, 16).await;
    assert_eq!(got.iter().map(|job| job.kind.as_str()).collect::<Vec<_>>(), ["delete"]);
    lab.sql.execute("update hosts set state = 'fenced'", &[]).await.unwrap();
    assert!(lab.claim_next(me, 16).await.is_empty());
}

/// A value that this release does not know fails its own job, not the batch: its lease expires until the job fails.
#[tokio::test(flavor = "multi_thread")]
async fn row_that_cannot_be_read_fails_only_its_own_job() {
    let lab = QueueFixture::new().await;
    let me = lab.host("h1", None).await;
    let mut broken = HashSet::new();
    for change in [
        r#"command = '{"a": 1}'"#,
        r#"env = '{"A": 1}'"#,
        r#"ports = '[{"container": 80, "host": 20000, "protocol": "icmp"}]'"#,
        "address = '::1'",
    ] {
        let instance = lab.create(lab.tenant, &spec(1)).await;
        let update = format!("update instances set {change} where id = '{}'", instance.id);
        assert_eq!(lab.sql.execute(&update, &[]).await.unwrap(), 1);
        broken.insert(instance.job);
    }
    lab.create_many(lab.tenant, &spec(1), 3).await;

    let got = lab.claim_next(me, 16).await;

    assert_eq!(got.len(), 3);
    for job in got {
        assert!(!broken.contains(&job.lease.job));
        lab.succeed(&job).await;
    }
    for _ in 0..3 {
        let expire = "update jobs set lease_until = now() - interval '1 s' where status = 'running'";
        assert_eq!(lab.sql.execute(expire, &[]).await.unwrap(), 4);
        assert_eq!(rescue::run_round(&lab.db, TIMES).await.unwrap().expired_leases, 4);
        lab.sql.execute("update jobs set run_at = now() where status = 'queued'", &[]).await.unwrap();
        assert!(lab.claim_next(me, 16).await.is_empty());
    }
    for job in broken {
        let job = lab.job(job).await;
        assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("attempts_exhausted")), "{job}");
    }
}

/// The worker's log lines name the request that made a job.
#[tokio::test(flavor = "multi_thread")]
async fn claim_returns_the_request_id_of_its_job() {
    let lab = QueueFixture::new().await;
    let me = lab.host("h1", None).await;
    let with_request = lab.create(lab.tenant, &spec(1)).await.job;
    lab.create(lab.tenant, &spec(1)).await;
    let update = "update jobs set request_id = case when id = $1 then 'r-1' end";
    lab.sql.execute(update, &[&with_request.uuid()]).await.unwrap();

    let claimed = lab.claim_next(me, 2).await;

    assert_eq!(claimed.len(), 2);
    for job in claimed {
        assert_eq!(job.request_id.as_deref(), (job.lease.job == with_request).then_some("r-1"));
    }
}

/// Rows of jobs and instances that were read so far, by the server's count; `lab.db` has one connection.
async fn rows_read(lab: &QueueFixture) -> i64 {
    // A connection tells of what it read once a second at most, unless it is told to.
    const TELL: &str = "select pg_stat_force_next_flush()";
    lab.db.read(Consistency::Primary, |c: ReadConn| async move { c.query(TELL, &[]).await }).await.unwrap();
    lab.sql.execute(TELL, &[]).await.unwrap();
    lab.count(
        "select sum(coalesce(idx_tup_fetch, 0) + coalesce(seq_tup_read, 0))::bigint from pg_stat_user_tables
         where relname in ('jobs', 'instances')",
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_twenty_thousand_jobs_of_five_hundred_tenants_waiting_a_claim_reads_a_few_of_each_tenant() {
    const TENANTS: i64 = 500;
    const JOBS: i64 = 20_000;
    let lab = QueueFixture::new().await;
    let me = lab.host("h1", Some(1_000_000)).await;
    lab.sql
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
        let before = rows_read(&lab).await;
        let got = lab.claim_next(me, 16).await;
        let read = rows_read(&lab).await - before;
        // About three and a half of each tenant. Sixteen of each, as many as are claimed, would be ten times that.
        assert!(read < 6 * TENANTS, "turn {turn}: {read} rows");
        assert_eq!(got.len(), 16);
        let tenants = lab.count("select count(distinct tenant_id) from jobs where status = 'running'").await;
        assert_eq!(tenants, turn * 16, "in turn");
    }
    lab.sql.execute("update hosts set memory_mib = 1", &[]).await.unwrap();
    // The dearest case: nothing fits, and all of it is looked at. Once.
    let before = rows_read(&lab).await;
    assert!(lab.claim_next(me, 16).await.is_empty());
    let read = rows_read(&lab).await - before;
    assert!((2 * JOBS..3 * JOBS).contains(&read), "{read} rows");
}
