//! Random interleavings of two workers, the rescue and an owner who deletes, with the real statements on a real
//! Postgres. After each step the invariants of instances, jobs and leases are checked.

use std::{collections::HashMap, time::Duration};

use app::core::{
    instances::{Reason, ReasonCode},
    queue::{
        claim::{Claimed, Lease, WorkerIdentity},
        finish::{Outcome, finish},
        heartbeat::heartbeat,
        job::JobKind,
        rescue,
        step::{Step, StepName, StepStatus},
    },
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use serde_json::{Value, json};

use super::fixture::{LEASE, QueueFixture, TIMES, claim, delete, spec};

#[derive(Clone, Copy, Debug)]
enum Action {
    Claim {
        worker: usize,
    },
    /// Sent with any lease that the worker ever had.
    Heartbeat {
        worker: usize,
        which: usize,
    },
    Finish {
        worker: usize,
        which: usize,
        how: How,
    },
    /// The lease expires, and the rescue runs.
    Expire,
    Delete,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Success,
    Failure,
    Again,
    Released,
    Stopped,
}

fn action() -> impl Strategy<Value = Action> {
    let worker = 0..2usize;
    // The newest leases are the most likely to be valid.
    let which = prop_oneof![3 => Just(0usize), 1 => 1..4usize];
    let how = prop_oneof![
        3 => Just(How::Success),
        1 => Just(How::Failure),
        2 => Just(How::Again),
        1 => Just(How::Released),
        1 => Just(How::Stopped)
    ];
    prop_oneof![
        5 => worker.clone().prop_map(|worker| Action::Claim { worker }),
        2 => (worker.clone(), which.clone()).prop_map(|(worker, which)| Action::Heartbeat { worker, which }),
        4 => (worker, which, how).prop_map(|(worker, which, how)| Action::Finish { worker, which, how }),
        2 => Just(Action::Expire),
        1 => Just(Action::Delete),
    ]
}

/// Everything that is stored about one instance.
#[derive(Clone, Debug, PartialEq)]
struct State {
    instance: Value,
    jobs: Vec<Value>,
    addresses: i64,
}

struct Case<'a> {
    fixture: &'a QueueFixture,
    workers: [WorkerIdentity; 2],
    instance: app::core::id::InstanceId,
    /// Every claim of each worker, the newest first.
    claims: [Vec<Claimed>; 2],
    ended: HashMap<String, Value>,
}

#[test]
fn invariants_hold_under_arbitrary_interleavings() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (fixture, workers) = runtime.block_on(async {
        let fixture = QueueFixture::new().await;
        let workers = [fixture.register_worker("h1", None).await, fixture.register_worker("h2", None).await];
        (fixture, workers)
    });
    let config = Config { cases: 300, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let actions = proptest::collection::vec(action(), 1..=12);
    let outcome = TestRunner::new(config).run(&actions, |actions| {
        runtime.block_on(run(&fixture, workers, &actions));
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }

    // Inside the runtime, which dropping the cluster needs.
    runtime.block_on(async move { drop(fixture) });
}

async fn run(fixture: &QueueFixture, workers: [WorkerIdentity; 2], actions: &[Action]) {
    // Rows that a failed case left must not be found by this case's claims.
    fixture.sql.batch_execute("delete from instances; delete from addresses").await.unwrap();
    let instance = fixture.create(fixture.tenant, &spec(1)).await.id;
    let mut case = Case { fixture, workers, instance, claims: [Vec::new(), Vec::new()], ended: HashMap::new() };
    for action in actions {
        case.take(*action).await;
        case.check().await;
    }
    case.come_to_rest().await;
}

impl Case<'_> {
    async fn state(&self) -> State {
        let query =
            "select to_jsonb(i), array(select to_jsonb(j) from jobs j where j.instance_id = i.id order by j.seq),
                     (select count(*) from addresses a where a.instance_id = i.id) from instances i where i.id = $1";
        let row = self.fixture.sql.query_one(query, &[&self.instance.uuid()]).await.unwrap();
        State { instance: row.get(0), jobs: row.get(1), addresses: row.get(2) }
    }

    async fn take(&mut self, action: Action) {
        match action {
            Action::Claim { worker } => self.claim(worker).await,
            Action::Heartbeat { worker, which } => {
                let Some(lease) = self.claims[worker].get(which).map(|claimed| claimed.lease) else { return };
                let (before, alive) = (self.state().await, self.is_alive(lease).await);
                let beats = [(lease, Some(vec![step_of(worker)]))];
                let ours = heartbeat(&self.fixture.db, self.workers[worker], &beats, LEASE).await.unwrap();
                assert_eq!(ours.as_ref().is_some_and(|ours| ours.contains_key(&lease.job)), alive);
                assert!(alive || self.state().await == before, "a lost lease wrote");
            }
            Action::Finish { worker, which, how } => {
                let Some(claimed) = self.claims[worker].get(which).cloned() else { return };
                let (before, alive) = (self.state().await, self.is_alive(claimed.lease).await);
                let outcome = outcome(how, &claimed, &before);
                let wrote = finish(&self.fixture.db, claimed.lease, claimed.kind, &outcome, &[]).await.unwrap();
                assert_eq!(wrote, alive);
                assert!(alive || self.state().await == before, "a lost lease wrote");
            }
            Action::Expire => {
                self.expire().await;
            }
            Action::Delete => {
                let before = self.state().await;
                let deletion = delete(&self.fixture.db, self.fixture.tenant, self.instance).await.unwrap();
                let deletion = deletion.unwrap();
                if before.instance["desired"] == "deleted" {
                    assert_eq!(before.instance["job_id"], json!(deletion.job));
                    assert_eq!(self.state().await, before, "a repeated delete wrote");
                }
            }
        }
    }

    async fn claim(&mut self, worker: usize) {
        let before = self.state().await;
        let identity = self.workers[worker];
        let got = claim(&self.fixture.db, identity, 16).await.unwrap().jobs;
        assert!(got.len() <= 1);
        for claimed in got {
            let pinned = &before.instance["host_id"];
            assert!(pinned.is_null() || *pinned == json!(identity.host), "an instance was placed twice");
            let unfinished = |job: &&Value| ["queued", "running"].contains(&job["status"].as_str().unwrap());
            let oldest = before.jobs.iter().find(unfinished).unwrap();
            assert_eq!((&oldest["id"], &oldest["status"]), (&json!(claimed.lease.job), &json!("queued")));
            assert_eq!(oldest["lease_token"].as_i64().unwrap() + 1, claimed.lease.token);
            self.claims[worker].insert(0, claimed);
        }
    }

    async fn expire(&self) {
        let sql = &self.fixture.sql;
        // The hosts count as alive, though no worker sends heartbeats here.
        sql.batch_execute(
            "update jobs set lease_until = now() - interval '1 s' where status = 'running'; update hosts set last_seen = now()",
        )
        .await
        .unwrap();
        rescue::run_round(&self.fixture.db, TIMES).await.unwrap();
        // The pause before the next attempt is over.
        sql.batch_execute("update jobs set run_at = now() where status = 'queued'").await.unwrap();
    }

    /// Reads from Postgres whether the lease is valid, independently of what the test assumes.
    async fn is_alive(&self, lease: Lease) -> bool {
        let query =
            "select count(*) from jobs where id = $1 and lease_token = $2 and lease_id = $3 and status = 'running'";
        let row =
            self.fixture.sql.query_one(query, &[&lease.job.uuid(), &lease.token, &lease.id.uuid()]).await.unwrap();
        row.get::<_, i64>(0) == 1
    }

    async fn check(&mut self) {
        let state = self.state().await;
        let running = state.jobs.iter().filter(|job| job["status"] == "running").count();
        assert!(running <= 1, "{state:#?}");
        assert_eq!(state.addresses, i64::from(state.instance["status"] != "deleted"), "{state:#?}");
        // A deleted instance is final like a finished job: no later step may change it.
        let gone = (state.instance["status"] == "deleted").then_some(&state.instance);
        let ended = state.jobs.iter().filter(|job| !job["finished_at"].is_null()).chain(gone);
        for thing in ended {
            let known = self.ended.entry(thing["id"].as_str().unwrap().to_owned()).or_insert_with(|| thing.clone());
            assert_eq!(known, thing, "something final changed");
        }
        if state.instance["desired"] == "deleted" {
            assert!(["deleting", "deleted"].contains(&state.instance["status"].as_str().unwrap()), "{state:#?}");
        }
        let unfinished = state.jobs.iter().any(|job| job["finished_at"].is_null());
        let at_rest = ["running", "failed", "deleted"].contains(&state.instance["status"].as_str().unwrap());
        assert!(unfinished || at_rest, "unfinished, and no job is left: {state:#?}");
    }

    /// I1: after any sequence of steps, workers that do their work bring every job to an end.
    async fn come_to_rest(&mut self) {
        for _ in 0..4 {
            if self.state().await.jobs.iter().all(|job| !job["finished_at"].is_null()) {
                break;
            }
            self.expire().await;
            for worker in 0..2 {
                self.claim(worker).await;
                let Some(claimed) = self.claims[worker].first().cloned() else { continue };
                let outcome = outcome(How::Success, &claimed, &self.state().await);
                finish(&self.fixture.db, claimed.lease, claimed.kind, &outcome, &[]).await.unwrap();
                self.check().await;
            }
        }
        let state = self.state().await;
        let expected: &[&str] =
            if state.instance["desired"] == "deleted" { &["deleted"] } else { &["running", "failed"] };
        assert!(expected.contains(&state.instance["status"].as_str().unwrap()), "{state:#?}");
        assert!(state.jobs.iter().all(|job| !job["finished_at"].is_null()), "{state:#?}");
    }
}

/// Returns what a worker would report: it never fails a delete, and fails a wanted instance only for a cause.
fn outcome(how: How, claimed: &Claimed, state: &State) -> Outcome {
    let deletion_requested = state.instance["desired"] == "deleted" && claimed.kind != JobKind::Delete;
    let after = Duration::ZERO;
    match how {
        _ if claimed.deletion_requested && claimed.kind != JobKind::Delete => Outcome::Superseded,
        How::Stopped if deletion_requested => Outcome::Cancelled,
        How::Success | How::Stopped => Outcome::Succeeded { container_id: Some("c".into()) },
        How::Failure if claimed.kind != JobKind::Delete => {
            Outcome::Failed(Reason { code: ReasonCode::ImageNotFound, detail: "no".into() })
        }
        How::Failure | How::Again => Outcome::Retry { after, reason: None, uses_attempt: true },
        How::Released => Outcome::Retry { after, reason: None, uses_attempt: false },
    }
}

/// A step that a worker writes with its heartbeat.
fn step_of(worker: usize) -> Step {
    Step {
        name: StepName::Image,
        status: StepStatus::Running,
        started_at: time::OffsetDateTime::UNIX_EPOCH,
        finished_at: None,
        detail: Some(worker.to_string().into()),
    }
}
