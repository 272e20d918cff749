//! Sixteen clients delete and finish the same instances while others send heartbeats and rescue expired leases. All
//! statements lock in one order, so none deadlocks; the control shows that the opposite order does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use app::core::{
    db::DualDb,
    id::TenantId,
    instances::InstanceSpec,
    queue::{
        claim::{Claimed, WorkerIdentity},
        finish::{Outcome, finish},
        heartbeat::heartbeat,
        rescue,
    },
};
use futures_util::future;
use tokio::sync::Barrier;

use super::fixture::{LEASE, QueueFixture, TIMES, claim, create, delete, register_worker, spec};
use crate::support::{cluster::connect, poll_until};

const CLIENTS: usize = 16;
const CYCLES: usize = 3008;

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_deletes_and_finishes_never_deadlock() {
    let fixture = QueueFixture::new().await;
    let left = Arc::new(AtomicUsize::new(CYCLES));
    let mut hosts = Vec::new();
    for n in 0..CLIENTS {
        hosts.push(register_worker(&fixture.db, &format!("h{n}"), None).await);
    }
    let clients = hosts.into_iter().map(|worker| {
        let (db, tenant, left) = (fixture.db.clone(), fixture.tenant, left.clone());
        tokio::spawn(async move {
            let mut done = 0;
            // Each client has a host of its own, so that it claims no job of another client.
            let mut spec = spec(1);
            spec.placement.host = Some(worker.host.to_string());
            while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
                cycle(&db, tenant, worker, &spec, done % 4).await.map_err(|error| format!("cycle {done}: {error}"))?;
                done += 1;
            }
            Ok::<usize, String>(done)
        })
    });
    // The rescue and the heartbeats lock many jobs in one statement, which is the usual second half of a deadlock.
    let rescuer = tokio::spawn({
        let db = fixture.db.clone();
        async move {
            let mut tick = tokio::time::interval(Duration::from_millis(10));
            loop {
                tick.tick().await;
                rescue::run_round(&db, TIMES).await.unwrap();
            }
        }
    });
    let outcomes = future::join_all(clients).await;
    rescuer.abort();
    let errors: Vec<String> = outcomes.iter().filter_map(|done| done.as_ref().unwrap().clone().err()).collect();
    assert_eq!(errors, Vec::<String>::new());
    let done: usize = outcomes.into_iter().map(|done| done.unwrap().unwrap()).sum();
    assert_eq!(done, CYCLES);

    assert_eq!(fixture.count("select count(*) from instances where status <> 'deleted'").await, 0);
    assert_eq!(fixture.count("select count(*) from jobs where finished_at is null").await, 0);
    assert_eq!(fixture.count("select count(*) from addresses").await, 0);
    assert_eq!(fixture.count("select count(*) from published_ports").await, 0);
    assert_eq!(fixture.count("select deadlocks from pg_stat_database where datname = current_database()").await, 0);
}

/// Runs one instance from its creation to its deletion, with the provision finishing at the moment of the delete.
async fn cycle(
    db: &DualDb,
    tenant: TenantId,
    worker: WorkerIdentity,
    spec: &InstanceSpec,
    variant: usize,
) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Debug| format!("{error:?}");
    let instance = create(db, tenant, spec).await?;
    let got = claim(db, worker, 1).await.map_err(|e| text(&e))?.jobs;
    let [provision] = got.as_slice() else { return Err("not claimed".into()) };
    let outcome = match variant {
        0 => Outcome::Retry { after: Duration::from_secs(3600), reason: None, uses_attempt: true },
        _ => Outcome::Succeeded { container_id: Some("c".into()) },
    };
    let beats: Vec<(_, _)> = vec![(provision.lease, Some(Vec::new()))];
    let (finished, deleted, again, beat) = tokio::join!(
        finish(db, provision.lease, provision.kind, &outcome, &[]),
        delete(db, tenant, instance.id),
        delete(db, tenant, instance.id),
        heartbeat(db, worker, &beats, LEASE),
    );
    finished.map_err(|e| text(&e))?;
    beat.map_err(|e| text(&e))?;
    let deletion = deleted.map_err(|e| text(&e))?.ok_or("gone")?;
    let same = again.map_err(|e| text(&e))?.ok_or("gone")?;
    if deletion.job != same.job {
        return Err("two deletes, two jobs".into());
    }
    let got = claim(db, worker, 1).await.map_err(|e| text(&e))?.jobs;
    let [delete]: &[Claimed] = got.as_slice() else { return Err("the delete was not claimable".into()) };
    let outcome = Outcome::Succeeded { container_id: None };
    match finish(db, delete.lease, delete.kind, &outcome, &[]).await {
        Ok(true) => Ok(()),
        other => Err(format!("the delete's end: {other:?}")),
    }
}

/// The control: two transactions, of which one locks the job first and the other the instance. Each has its first row
/// before either requests its second.
#[tokio::test(flavor = "multi_thread")]
async fn opposite_lock_order_deadlocks() {
    let fixture = QueueFixture::new().await;

    let instance = fixture.create(fixture.tenant, &spec(1)).await.id;
    let job = format!("update jobs set attempt = attempt where instance_id = '{instance}'");
    let owner = format!("update instances set updated_at = now() where id = '{instance}'");
    let both_have_one = Barrier::new(2);
    let party = async |first: &str, second: &str| {
        let sql = connect(&fixture.cluster.database_url).await;
        sql.batch_execute(&format!("begin; {first}")).await.unwrap();
        both_have_one.wait().await;
        let ended = sql.batch_execute(&format!("{second}; commit")).await;
        ended.map_err(|error| error.code().unwrap().code().to_owned())
    };
    let (one, other) = future::join(party(&job, &owner), party(&owner, &job)).await;
    let deadlock = Err("40P01".to_owned());

    assert!(one == deadlock && other == Ok(()) || one == Ok(()) && other == deadlock, "{one:?} {other:?}");

    // Postgres publishes the count when the connections are closed.
    poll_until("deadlocks in pg_stat_database", Duration::from_secs(30), async || {
        let query = "select deadlocks from pg_stat_database where datname = current_database()";
        (fixture.count(query).await > 0).then_some(())
    })
    .await;
}
