//! The other changes that take something away, raced like revocations: rotation, expiry, scopes, suspension.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use futures_util::future;
use serde_json::json;

use super::{
    alone,
    minted::{KeyFactory, Minted},
    naive::{Naive, NaiveReader},
    race::{AFTER, Course, READERS, RevocationRace, Tally, race, sweep, timed},
    wire::RawClient,
};
use crate::support::Cluster;

const KEYS: usize = 300;
const LANES: usize = 50;
const SELF: (&str, u16) = ("/keys/self", 200);

/// Nobody was accepted after, and the race was one.
#[track_caller]
fn judge(what: &str, l1: &str, started: Instant, tally: &Tally, changes: usize) {
    tally.report(&format!("{what}, L1 {l1}"), started);
    assert_eq!(tally.changes.len(), changes);
    assert!(tally.before > 0 && tally.after >= changes * READERS, "{tally:?}");
    assert_eq!(tally.accepted_after, 0, "{what}");
}

async fn rotated(arena: &RevocationRace, l1: &str) {
    let started = Instant::now();
    let tenant = arena.mint.tenant("rotated").await;
    let keys = arena.mint.keys(KEYS, tenant, &["keys:read"], None).await;
    let new = Mutex::new(Vec::new());
    let rotate = async |key: &Minted| {
        let body = arena.tell("POST", format!("/keys/{}/rotate", key.id), Some(json!({})), 201).await;
        new.lock().unwrap().push(body["key"].as_str().unwrap().to_owned());
    };
    let tally = arena.laps(&keys, LANES, SELF, sweep, |key| timed(rotate(key))).await;
    judge("rotate", l1, started, &tally, KEYS);
    let mut wires = [RawClient::open(&arena.asked[0].1).await, RawClient::open(&arena.asked[1].1).await];
    for key in new.into_inner().unwrap() {
        for wire in &mut wires {
            wire.get("/keys/self", &key).await.expect(200);
        }
    }
}

async fn rotated_with_grace(arena: &RevocationRace, l1: &str) {
    let started = Instant::now();
    let tenant = arena.mint.tenant("grace").await;
    let keys = arena.mint.keys(100, tenant, &["keys:read"], None).await;
    let within = Mutex::new(0);
    let rotate = async |key: &Minted| {
        let path = format!("/keys/{}/rotate", key.id);
        arena.tell("POST", path, Some(json!({"grace_s": 1})), 201).await;
        let mut wire = RawClient::open(&arena.asked[0].1).await;
        let status = wire.get("/keys/self", &key.text).await.status;
        // On a machine that was busy for a second, the grace is over.
        assert!(status == 200 || arena.mint.has_expired(key).await, "{status}");
        *within.lock().unwrap() += usize::from(status == 200);
        arena.mint.expired(key).await;
    };
    let tally = arena.laps(&keys, 25, SELF, sweep, |key| timed(rotate(key))).await;
    judge("rotate with a grace of 1 s", l1, started, &tally, 100);
    assert!(within.into_inner().unwrap() > 0, "the grace is one");
}

async fn expired(arena: &RevocationRace, l1: &str) {
    let started = Instant::now();
    let tenant = arena.mint.tenant("expired").await;
    // Lane by lane: those of one turn expire together, a second after those of the turn before.
    let mut keys = Vec::new();
    for turn in 1..=KEYS / LANES {
        #[allow(clippy::cast_precision_loss, reason = "a few")]
        keys.extend(arena.mint.keys(LANES, tenant, &["keys:read"], Some(turn as f64)).await);
    }
    let tally =
        arena.laps(&keys, LANES, SELF, |_| Course::at_once(0, AFTER), |key| timed(arena.mint.expired(key))).await;
    judge("expiry", l1, started, &tally, KEYS);
}

async fn scopes_taken(arena: &RevocationRace, l1: &str) {
    let started = Instant::now();
    let tenant = arena.mint.tenant("scopes").await;
    let keys = arena.mint.keys(KEYS, tenant, &["instances:read", "networks:read"], None).await;
    let take = |key: &Minted| {
        let body = json!({"scopes": ["networks:read"]});
        timed(arena.tell("PATCH", format!("/keys/{}", key.id), Some(body), 200))
    };
    // Not an id: 404 for who may read instances, and 403 for who may not; Postgres is not asked.
    let tally = arena.laps(&keys, LANES, ("/instances/none", 404), sweep, take).await;
    judge("scope change", l1, started, &tally, KEYS);
}

async fn suspended(arena: &RevocationRace, l1: &str) {
    let started = Instant::now();
    let run = async |verb: &str, name: &str| {
        let command = arena.cluster.command(&["tenants", verb, "--tenant", name]);
        let output = tokio::process::Command::from(command).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let run = &run;
    let tenants = (0..6).map(|n| async move {
        let name = format!("suspended-{n}");
        let tenant = arena.mint.tenant(&name).await;
        let keys = arena.mint.keys(50, tenant, &["keys:read"], None).await;
        let all: Vec<&Minted> = keys.iter().collect();
        let mut readers = arena.readers(SELF.0, SELF.1).await;
        // So that each reader has met each key before, or nearly.
        let course = Course::at_once(if n % 2 == 0 { READERS } else { 0 }, 20);
        let tally = race(&mut readers, &all, course, timed(run("suspend", &name))).await;
        run("resume", &name).await;
        let mut wire = RawClient::open(&arena.asked[1].1).await;
        for key in &keys {
            wire.get(SELF.0, &key.text).await.expect(200);
        }
        tally
    });
    let tally = Tally::sum(future::join_all(tenants).await);
    judge("suspension of 6 tenants with 50 keys each", l1, started, &tally, 6);
}

async fn nothing_is_left_of_what_was_taken(l1: &str) {
    let _alone = alone().await;
    let arena = RevocationRace::open(l1).await;
    rotated(&arena, l1).await;
    rotated_with_grace(&arena, l1).await;
    expired(&arena, l1).await;
    scopes_taken(&arena, l1).await;
    suspended(&arena, l1).await;
}

/// The control: the cache one writes first remembers a key that has expired, and one of a tenant that was suspended.
/// For it a rotation and a change of scopes are what a revocation is, an update and a DEL: see the race of those.
#[tokio::test(flavor = "multi_thread")]
async fn the_naive_cache_accepts_keys_that_expired_or_were_suspended() {
    let _alone = alone().await;
    let cluster = Cluster::simulated().await;
    let (mint, sql) = (KeyFactory::of(&cluster).await, cluster.sql().await);
    let asked = [Naive::start(&cluster).await, Naive::start(&cluster).await];
    // Nothing is evicted: a refill would tell it by accident, sooner or later.
    let mut readers: Vec<_> = (0..READERS).map(|n| NaiveReader { process: &asked[n % 2], n, evicts: false }).collect();
    let course = Course::at_once(READERS, AFTER);

    let mut expiry = Vec::new();
    let tenant = mint.tenant("naive").await;
    for key in mint.keys(20, tenant, &["keys:read"], None).await {
        let end = async {
            sql.execute("update api_key set expires_at = clock_timestamp() + '50 ms' where id = $1", &[&key.id])
                .await
                .unwrap();
            mint.expired(&key).await;
        };
        expiry.push(race(&mut readers, &[&key], course, timed(end)).await);
    }
    let expiry = Tally::sum(expiry);
    assert_eq!(expiry.accepted_after, expiry.after, "a race that this one survives shows nothing");

    let mut suspension = Vec::new();
    for key in mint.keys(20, tenant, &["keys:read"], None).await {
        sql.execute("update tenants set suspended_at = null where id = $1", &[&tenant]).await.unwrap();
        let suspend = async {
            sql.execute("update tenants set suspended_at = now() where id = $1", &[&tenant]).await.unwrap();
        };
        suspension.push(race(&mut readers, &[&key], course, timed(suspend)).await);
    }
    let suspension = Tally::sum(suspension);
    assert_eq!(suspension.accepted_after, suspension.after, "a race that this one survives shows nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_expiry_scopes_and_suspension_take_at_once_with_keys_kept_in_the_process() {
    tokio::time::timeout(Duration::from_secs(300), nothing_is_left_of_what_was_taken("on")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_expiry_scopes_and_suspension_take_at_once_with_keys_kept_in_redis_only() {
    tokio::time::timeout(Duration::from_secs(300), nothing_is_left_of_what_was_taken("off")).await.unwrap();
}
