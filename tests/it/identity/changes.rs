//! The other changes that restrict a key, raced like revocations: rotation, expiry, a change of scopes, and suspension
//! of the tenant.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use futures_util::future;
use serde_json::json;

use super::{
    key_factory::{KeyFactory, TestKey},
    naive::{NaiveCache, NaiveReader},
    race::{AFTER, READERS, RevocationRace, Schedule, Tally, race, schedule_for_turn, timed},
    raw_client::RawClient,
    serial,
};
use crate::support::Cluster;

const KEYS: usize = 300;
const TASKS: usize = 50;
const SELF: (&str, u16) = ("/keys/self", 200);

/// Asserts that no request that began after a change was accepted, and that readers were accepted before it.
#[track_caller]
fn assert_refused_after(what: &str, l1: &str, started: Instant, tally: &Tally, changes: usize) {
    tally.report(&format!("{what}, L1 {l1}"), started);
    assert_eq!(tally.changes.len(), changes);
    assert!(tally.before > 0 && tally.after >= changes * READERS, "{tally:?}");
    assert_eq!(tally.accepted_after, 0, "{what}");
}

async fn race_rotation(fixture: &RevocationRace, l1: &str) {
    let started = Instant::now();
    let tenant = fixture.key_factory.create_tenant("rotated").await;
    let keys = fixture.key_factory.create_keys(KEYS, tenant, &["keys:read"], None).await;
    let new = Mutex::new(Vec::new());
    let rotate = async |key: &TestKey| {
        let body = fixture.send_change("POST", format!("/keys/{}/rotate", key.id), Some(json!({})), 201).await;
        new.lock().unwrap().push(body["key"].as_str().unwrap().to_owned());
    };
    let tally = fixture.race_each(&keys, TASKS, SELF, schedule_for_turn, |key| timed(rotate(key))).await;
    assert_refused_after("rotate", l1, started, &tally, KEYS);
    let mut clients =
        [RawClient::connect(&fixture.verifiers[0].1).await, RawClient::connect(&fixture.verifiers[1].1).await];
    for key in new.into_inner().unwrap() {
        for client in &mut clients {
            client.get("/keys/self", &key).await.expect(200);
        }
    }
}

async fn race_rotation_with_grace(fixture: &RevocationRace, l1: &str) {
    let started = Instant::now();
    let tenant = fixture.key_factory.create_tenant("grace").await;
    let keys = fixture.key_factory.create_keys(100, tenant, &["keys:read"], None).await;
    let within = Mutex::new(0);
    let rotate = async |key: &TestKey| {
        let path = format!("/keys/{}/rotate", key.id);
        fixture.send_change("POST", path, Some(json!({"grace_s": 1})), 201).await;
        let mut client = RawClient::connect(&fixture.verifiers[0].1).await;
        let status = client.get("/keys/self", &key.text).await.status;
        // On a machine that was busy for a second, the grace period is over.
        assert!(status == 200 || fixture.key_factory.has_expired(key).await, "{status}");
        *within.lock().unwrap() += usize::from(status == 200);
        fixture.key_factory.wait_until_expired(key).await;
    };
    let tally = fixture.race_each(&keys, 25, SELF, schedule_for_turn, |key| timed(rotate(key))).await;
    assert_refused_after("rotate with a grace of 1 s", l1, started, &tally, 100);
    assert!(within.into_inner().unwrap() > 0, "no request was accepted within the grace period");
}

async fn race_expiry(fixture: &RevocationRace, l1: &str) {
    let started = Instant::now();
    let tenant = fixture.key_factory.create_tenant("expired").await;
    // In the order of the tasks: the keys of one turn expire together, a second after those of the turn before.
    let mut keys = Vec::new();
    for turn in 1..=KEYS / TASKS {
        #[allow(clippy::cast_precision_loss, reason = "a few")]
        keys.extend(fixture.key_factory.create_keys(TASKS, tenant, &["keys:read"], Some(turn as f64)).await);
    }
    let tally = fixture
        .race_each(
            &keys,
            TASKS,
            SELF,
            |_| Schedule::at_once(0, AFTER),
            |key| timed(fixture.key_factory.wait_until_expired(key)),
        )
        .await;
    assert_refused_after("expiry", l1, started, &tally, KEYS);
}

async fn race_scope_change(fixture: &RevocationRace, l1: &str) {
    let started = Instant::now();
    let tenant = fixture.key_factory.create_tenant("scopes").await;
    let keys = fixture.key_factory.create_keys(KEYS, tenant, &["instances:read", "networks:read"], None).await;
    let take = |key: &TestKey| {
        let body = json!({"scopes": ["networks:read"]});
        timed(fixture.send_change("PATCH", format!("/keys/{}", key.id), Some(body), 200))
    };
    // `none` is not an id: the response is 404 with the scope and 403 without it, and Postgres is not queried.
    let tally = fixture.race_each(&keys, TASKS, ("/instances/none", 404), schedule_for_turn, take).await;
    assert_refused_after("scope change", l1, started, &tally, KEYS);
}

async fn race_suspension(fixture: &RevocationRace, l1: &str) {
    let started = Instant::now();
    let run = async |verb: &str, name: &str| {
        let command = fixture.cluster.command(&["tenants", verb, "--tenant", name]);
        let output = tokio::process::Command::from(command).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let run = &run;
    let tenants = (0..6).map(|n| async move {
        let name = format!("suspended-{n}");
        let tenant = fixture.key_factory.create_tenant(&name).await;
        let keys = fixture.key_factory.create_keys(50, tenant, &["keys:read"], None).await;
        let all: Vec<&TestKey> = keys.iter().collect();
        let mut readers = fixture.readers(SELF.0, SELF.1).await;
        // With 20 requests after the change, nearly every reader has used each key before.
        let schedule = Schedule::at_once(if n % 2 == 0 { READERS } else { 0 }, 20);
        let tally = race(&mut readers, &all, schedule, timed(run("suspend", &name))).await;
        run("resume", &name).await;
        let mut client = RawClient::connect(&fixture.verifiers[1].1).await;
        for key in &keys {
            client.get(SELF.0, &key.text).await.expect(200);
        }
        tally
    });
    let tally = Tally::sum(future::join_all(tenants).await);
    assert_refused_after("suspension of 6 tenants with 50 keys each", l1, started, &tally, 6);
}

async fn changes_apply_at_once(l1: &str) {
    let _serial = serial().await;
    let fixture = RevocationRace::open(l1).await;
    race_rotation(&fixture, l1).await;
    race_rotation_with_grace(&fixture, l1).await;
    race_expiry(&fixture, l1).await;
    race_scope_change(&fixture, l1).await;
    race_suspension(&fixture, l1).await;
}

/// The control: the naive cache still accepts a key that has expired, and one of a tenant that was suspended. For it a
/// rotation and a change of scopes are what a revocation is, an UPDATE and a DEL: `race.rs` covers those.
#[tokio::test(flavor = "multi_thread")]
async fn naive_cache_accepts_expired_and_suspended_keys() {
    let _serial = serial().await;
    let cluster = Cluster::simulated().await;
    let (key_factory, sql) = (KeyFactory::of(&cluster).await, cluster.sql().await);
    let verifiers = [NaiveCache::start(&cluster).await, NaiveCache::start(&cluster).await];
    // Nothing is evicted: filling the cache again would read the change from Postgres by accident.
    let mut readers: Vec<_> =
        (0..READERS).map(|n| NaiveReader { process: &verifiers[n % 2], n, evicts: false }).collect();
    let schedule = Schedule::at_once(READERS, AFTER);

    let mut expiry = Vec::new();
    let tenant = key_factory.create_tenant("naive").await;
    for key in key_factory.create_keys(20, tenant, &["keys:read"], None).await {
        let end = async {
            sql.execute("update api_key set expires_at = clock_timestamp() + '50 ms' where id = $1", &[&key.id])
                .await
                .unwrap();
            key_factory.wait_until_expired(&key).await;
        };
        expiry.push(race(&mut readers, &[&key], schedule, timed(end)).await);
    }
    let expiry = Tally::sum(expiry);
    assert_eq!(expiry.accepted_after, expiry.after, "the naive cache was right, so the race proves nothing");

    let mut suspension = Vec::new();
    for key in key_factory.create_keys(20, tenant, &["keys:read"], None).await {
        sql.execute("update tenants set suspended_at = null where id = $1", &[&tenant]).await.unwrap();
        let suspend = async {
            sql.execute("update tenants set suspended_at = now() where id = $1", &[&tenant]).await.unwrap();
        };
        suspension.push(race(&mut readers, &[&key], schedule, timed(suspend)).await);
    }
    let suspension = Tally::sum(suspension);
    assert_eq!(suspension.accepted_after, suspension.after, "the naive cache was right, so the race proves nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn key_changes_apply_at_once_with_the_process_cache() {
    tokio::time::timeout(Duration::from_secs(300), changes_apply_at_once("on")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn key_changes_apply_at_once_with_the_redis_cache_only() {
    tokio::time::timeout(Duration::from_secs(300), changes_apply_at_once("off")).await.unwrap();
}
