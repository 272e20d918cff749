//! What it costs: forged keys nothing, unknown ones a bounded amount, and keys in use no question to Postgres.

use std::time::{Duration, Instant};

use app::core::identity::api_key::KeyEnv;
use futures_util::future;
use secrecy::ExposeSecret;

use super::{
    alone, metric,
    minted::{Minted, forger},
    stage::Stage,
    wire::Wire,
};
use crate::support::eventually;

const LANES: usize = 32;

/// Postgres' own count of look-ups of keys in this installation.
struct Lookups(tokio_postgres::Client);

impl Lookups {
    async fn of(stage: &Stage) -> Self {
        let sql = stage.cluster.sql().await;
        sql.batch_execute("create extension pg_stat_statements").await.unwrap();
        Self(sql)
    }

    async fn count(&self) -> i64 {
        let count = "select coalesce(sum(calls), 0)::bigint from pg_stat_statements
                     where dbid = (select oid from pg_database where datname = current_database())
                       and query like '%from api_key k join tenants t%where k.key_hash%'";
        self.0.query_one(count, &[]).await.unwrap().get(0)
    }
}

fn size(stage: &Stage) -> usize {
    stage.redis.cli(&["dbsize"]).trim_end().parse().unwrap()
}

/// Asks about all of them, many at a time, at both replicas; how many got each status.
async fn ask_all(stage: &Stage, keys: &[String]) -> [(u16, usize); 3] {
    let lanes = (0..LANES).map(|lane| async move {
        let mut wire = Wire::open(if lane % 2 == 0 { &stage.a.1 } else { &stage.b.1 }).await;
        let mut counts = [(200, 0), (401, 0), (503, 0)];
        for key in keys.iter().skip(lane).step_by(LANES) {
            let status = wire.get("/keys/self", key).await.status;
            counts.iter_mut().find(|(known, _)| *known == status).unwrap().1 += 1;
        }
        counts
    });
    let all = future::join_all(lanes).await;
    [0, 1, 2].map(|n| (all[0][n].0, all.iter().map(|counts| counts[n].1).sum()))
}

fn texts(keys: &[Minted]) -> Vec<String> {
    keys.iter().map(|key| key.text.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_thousand_forged_keys_cost_no_query_and_no_entry() {
    const FLOOD: usize = 50_000;
    let _alone = alone().await;
    let stage = Stage::open("on").await;
    let (lookups, forger, key) = (Lookups::of(&stage).await, forger(), stage.key().await);
    stage.warm(&key).await;
    let forged: Vec<String> = (0..FLOOD)
        .map(|n| {
            let forged = forger.make(KeyEnv::Live, getrandom::fill).unwrap().text.expose_secret().to_owned();
            match n % 5 {
                // A good key with a typo, which its checksum tells.
                0 => format!("{}{}", &key.text[..55], if key.text.ends_with('x') { 'y' } else { 'x' }),
                1 => forged[..n % forged.len()].to_owned() + "x",
                // The right form and checksum: only the tag tells.
                _ => forged,
            }
        })
        .collect();
    let (queries, entries) = (lookups.count().await, size(&stage));
    assert!(queries > 0, "they are counted");
    let started = Instant::now();
    let statuses = ask_all(&stage, &forged).await;
    let took = started.elapsed();
    assert_eq!(statuses, [(200, 0), (401, FLOOD), (503, 0)]);
    let (queries, entries) = (lookups.count().await - queries, size(&stage) - entries);
    eprintln!("{FLOOD} forged keys in {took:.1?}: {queries} queries, {entries} entries in Redis");
    assert_eq!((queries, entries), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_unknown_keys_with_a_good_tag_is_bounded_and_hinders_nobody() {
    const FLOOD: usize = 10_000;
    let _alone = alone().await;
    let stage = Stage::open("on").await;
    let (lookups, key) = (Lookups::of(&stage).await, stage.key().await);
    stage.warm(&key).await;
    let unknown: Vec<String> = (0..FLOOD).map(|_| stage.mint.unknown().text).collect();
    let (queries, entries) = (lookups.count().await, size(&stage));
    let started = Instant::now();
    let others = async {
        let mut wire = Wire::open(&stage.a.1).await;
        for _ in 0..500 {
            wire.get("/keys/self", &key.text).await.expect(200);
        }
    };
    let (statuses, ()) = future::join(ask_all(&stage, &unknown), others).await;
    let took = started.elapsed();
    let at_once = size(&stage) - entries;
    let (queries, [(_, accepted), (_, refused), (_, busy)]) = (lookups.count().await - queries, statuses);
    assert_eq!(accepted, 0);
    assert_eq!(refused + busy, FLOOD);
    assert!(queries <= i64::try_from(FLOOD).unwrap());
    // Leases live three seconds; after that what is remembered is a hundred a second for each process.
    let left = eventually("leases to end", Duration::from_secs(10), async || {
        let kinds = stage.redis.cli(&["--raw", "eval", LEASES, "0"]);
        (kinds.trim_end() == "0").then(|| size(&stage) - entries)
    })
    .await;
    eprintln!(
        "{FLOOD} unknown keys in {took:.1?}: {queries} queries, {refused} refused, {busy} told to come again; {at_once} \
         entries in Redis at the end, {left} three seconds later"
    );
    let seconds = usize::try_from(took.as_secs()).unwrap() + 2;
    assert!(left <= 2 * 100 * seconds, "{left} in {seconds} s");
}

const LEASES: &str = "
local n = 0
for _, key in ipairs(redis.call('KEYS', '*:ak1:*')) do
  if redis.call('GETRANGE', key, 0, 0) == 'L' then n = n + 1 end
end
return n";

async fn hot(l1: &str) {
    const KEYS: usize = 200;
    const ROUNDS: usize = 100;
    let stage = Stage::open(l1).await;
    let lookups = Lookups::of(&stage).await;
    let keys = texts(&stage.keys(KEYS).await);
    let lookups_before = lookups.count().await;
    let first: Vec<String> = keys.iter().cycle().take(KEYS * 4).cloned().collect();
    let statuses = ask_all(&stage, &first).await;
    assert_eq!(statuses[0].1, KEYS * 4);
    let cold = lookups.count().await;

    let all: Vec<String> = keys.iter().cycle().take(KEYS * ROUNDS).cloned().collect();
    let tiers = async |tier| {
        let labels = [("tier", tier), ("result", "accepted")];
        metric(&stage.a.1, "identity_verify_total", &labels).await
            + metric(&stage.b.1, "identity_verify_total", &labels).await
    };
    let before = [tiers("l1").await, tiers("redis").await, tiers("pg").await];
    let statuses = ask_all(&stage, &all).await;
    assert_eq!(statuses[0].1, all.len());
    let after = [tiers("l1").await, tiers("redis").await, tiers("pg").await];
    let [l1_hits, redis_hits, misses] = [0, 1, 2].map(|n| after[n] - before[n]);
    let queries = lookups.count().await - cold;
    eprintln!(
        "hot keys, L1 {l1}: {KEYS} keys cost {} queries when new; then {} requests: {l1_hits} from the process, \
         {redis_hits} from Redis, {misses} from Postgres, {queries} queries",
        cold - lookups_before,
        all.len()
    );
    assert_eq!(queries, 0, "keys in use ask Postgres nothing");
    assert_eq!(misses, 0.0, "hit ratio 1");
    assert!(l1 == "off" || l1_hits > redis_hits * 10.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_use_ask_postgres_nothing() {
    let _alone = alone().await;
    hot("on").await;
    hot("off").await;
}
