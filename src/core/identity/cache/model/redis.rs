//! Redis and the primary: no verification that begins after a revocation has returned accepts the key.
//!
//! Readers verify any number of times, entries may vanish at any step, and every order of steps is explored.

use super::{
    assert_safe, assert_violated,
    redis_model::RedisModel,
    redis_rules::{FillRule, PRODUCTION, Rules},
};

#[test]
fn fill_under_a_lease_is_safe_with_and_without_tombstones() {
    const THREE: Rules = Rules { readers: 3, ..PRODUCTION };
    const DELETED: Rules = Rules { tombstone: false, ..THREE };
    assert_safe("lease, tombstone, 3 readers", &RedisModel::new(&THREE));
    assert_safe("lease, DEL, 3 readers", &RedisModel::new(&DELETED));
}

#[test]
fn refreshes_late_commands_and_forged_values_are_safe() {
    const REFRESHING: Rules = Rules { refreshing: true, ..PRODUCTION };
    const FAILURES: Rules = Rules { failures: true, ..PRODUCTION };
    const FORGER: Rules = Rules { forger: true, refreshing: true, tombstone: false, ..PRODUCTION };
    assert_safe("refreshing, 2 readers", &RedisModel::new(&REFRESHING));
    assert_safe("forger, refreshing, 2 readers", &RedisModel::new(&FORGER));
    assert_safe("failures, 2 readers", &RedisModel::new(&FAILURES));
}

#[test]
fn fill_that_does_not_compare_accepts_a_revoked_key() {
    const NAIVE: Rules = Rules { fill: FillRule::Set, tombstone: false, vanishing: false, ..PRODUCTION };
    const IF_MISSING: Rules = Rules { fill: FillRule::SetIfMissing, ..PRODUCTION };
    const KEPT: Rules = Rules { vanishing: false, ..IF_MISSING };
    assert_violated("SET and DEL", &RedisModel::new(&NAIVE));
    assert_violated("SET NX and a tombstone that vanishes", &RedisModel::new(&IF_MISSING));
    assert_safe("SET NX and a tombstone that never vanishes", &RedisModel::new(&KEPT));
}

#[test]
fn redis_before_postgres_or_a_replica_accepts_a_revoked_key() {
    const REDIS_FIRST: Rules = Rules { database_first: false, ..PRODUCTION };
    const REPLICA: Rules = Rules { replica: true, ..PRODUCTION };
    assert_violated("Redis is written before the commit", &RedisModel::new(&REDIS_FIRST));
    assert_violated("fills read a lagging replica", &RedisModel::new(&REPLICA));
}

#[test]
fn values_that_come_back_are_refused_with_the_feed_only() {
    const LYING: Rules = Rules { lying: true, ..PRODUCTION };
    const FALLS_BACK: Rules = Rules { falling_back: true, ..PRODUCTION };
    const REPLANTED: Rules = Rules { replanting: true, vanishing: false, ..PRODUCTION };
    assert_violated("Redis is not written, yet the revocation returns", &RedisModel::new(&LYING));
    assert_violated("Redis falls back to an older state", &RedisModel::new(&FALLS_BACK));
    assert_violated("an intruder puts back what was there", &RedisModel::new(&REPLANTED));
    // The same, where a revocation counts as returned once the feed has been read.
    const FED: Rules = Rules { feed: true, lying: true, replanting: true, ..PRODUCTION };
    const UNFED: Rules = Rules { feed: false, ..FED };
    assert_safe("all of these, and the feed", &RedisModel::new(&FED));
    assert_violated("all of these, and no feed", &RedisModel::new(&UNFED));
}
