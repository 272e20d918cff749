//! Redis and the primary: no verification that begins after a revocation returned accepts the key.
//!
//! Readers verify any number of times, entries may vanish at any step, and every order of steps is tried.

use super::{
    goes_wrong, is_safe,
    redis_rules::{Filling, OURS, Rules},
    redis_world::Redis,
};

#[test]
fn a_fill_under_a_lease_is_safe_with_a_tombstone_and_without() {
    const THREE: Rules = Rules { readers: 3, ..OURS };
    const DELETED: Rules = Rules { tombstone: false, ..THREE };
    is_safe("lease, tombstone, 3 readers", &Redis::new(&THREE));
    is_safe("lease, DEL, 3 readers", &Redis::new(&DELETED));
}

#[test]
fn refreshing_lost_and_late_commands_and_forged_values_change_nothing() {
    const REFRESHING: Rules = Rules { refreshing: true, ..OURS };
    const FAILURES: Rules = Rules { failures: true, ..OURS };
    const FORGER: Rules = Rules { forger: true, refreshing: true, tombstone: false, ..OURS };
    is_safe("refreshing, 2 readers", &Redis::new(&REFRESHING));
    is_safe("forger, refreshing, 2 readers", &Redis::new(&FORGER));
    is_safe("failures, 2 readers", &Redis::new(&FAILURES));
}

#[test]
fn a_fill_that_does_not_compare_is_wrong() {
    const NAIVE: Rules = Rules { filling: Filling::Set, tombstone: false, vanishing: false, ..OURS };
    const IF_NOTHING: Rules = Rules { filling: Filling::SetIfNothing, ..OURS };
    const KEPT: Rules = Rules { vanishing: false, ..IF_NOTHING };
    goes_wrong("SET and DEL", &Redis::new(&NAIVE));
    goes_wrong("SET NX and a tombstone that vanishes", &Redis::new(&IF_NOTHING));
    is_safe("SET NX and a tombstone that never vanishes", &Redis::new(&KEPT));
}

#[test]
fn postgres_comes_before_redis_and_fills_come_from_the_primary() {
    const REDIS_FIRST: Rules = Rules { database_first: false, ..OURS };
    const REPLICA: Rules = Rules { replica: true, ..OURS };
    goes_wrong("Redis is told before the commit", &Redis::new(&REDIS_FIRST));
    goes_wrong("fills read a lagging replica", &Redis::new(&REPLICA));
}

#[test]
fn what_redis_loses_or_an_intruder_puts_back_is_what_the_feed_is_for() {
    const LYING: Rules = Rules { lying: true, ..OURS };
    const FALLS_BACK: Rules = Rules { falling_back: true, ..OURS };
    const REPLANTED: Rules = Rules { replanting: true, vanishing: false, ..OURS };
    goes_wrong("Redis is not told, yet the revocation returns", &Redis::new(&LYING));
    goes_wrong("Redis falls back to an older state", &Redis::new(&FALLS_BACK));
    goes_wrong("an intruder puts back what was there", &Redis::new(&REPLANTED));
    // The same, where the revocation counts once the feed has told it.
    const FED: Rules = Rules { feed: true, lying: true, replanting: true, ..OURS };
    const UNFED: Rules = Rules { feed: false, ..FED };
    is_safe("all of these, and the feed", &Redis::new(&FED));
    goes_wrong("all of these, and no feed", &Redis::new(&UNFED));
}
