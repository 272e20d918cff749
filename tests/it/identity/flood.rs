//! The cost of keys: forged ones cost no query, unknown ones a bounded amount, and keys in use cause no queries of
//! Postgres.

use std::time::{Duration, Instant};

use app::core::identity::api_key::KeyEnv;
use futures_util::future;
use secrecy::ExposeSecret;

use super::{
    key_factory::{TestKey, forger},
    metric,
    raw_client::RawClient,
    redis_timeouts, serial,
    two_replicas::TwoReplicas,
};
use crate::support::{poll_until, proxy::Proxy};

const TASKS: usize = 32;

/// Counts round trips to Postgres during a future. Returns its result, its duration, the count, and what idle replicas
/// cause in that time by feeds, outboxes and maintenance.
async fn round_trips<T>(proxy: &Proxy, what: impl Future<Output = T>) -> (T, Duration, u64, u64) {
    let idle = async |time: Duration| {
        let before = proxy.round_trips();
        tokio::time::sleep(time).await;
        proxy.round_trips() - before
    };
    const SAMPLE: Duration = Duration::from_secs(3);
    let sample = idle(SAMPLE).await;
    let (before, started) = (proxy.round_trips(), Instant::now());
    let done = what.await;
    let (took, trips) = (started.elapsed(), proxy.round_trips() - before);
    // Half as much again, since the sample is only one.
    (done, took, trips, sample * (took.as_millis() as u64 + 2000) / SAMPLE.as_millis() as u64 * 3 / 2)
}

/// Returns the number of key look-ups in Postgres, by the metrics of both replicas.
async fn lookups(replicas: &TwoReplicas) -> f64 {
    let [a, b] = [&replicas.a.1, &replicas.b.1].map(|base| metric(base, "identity_verify_total", &[("tier", "pg")]));
    a.await + b.await
}

fn size(replicas: &TwoReplicas) -> usize {
    replicas.redis.cli(&["dbsize"]).trim_end().parse().unwrap()
}

/// Uses all keys at both replicas, many at a time, and counts the responses with each status.
async fn use_all(replicas: &TwoReplicas, keys: &[String]) -> [(u16, usize); 3] {
    let tasks = (0..TASKS).map(|task| async move {
        // Each key is sent to both replicas over time.
        let mut client = RawClient::connect(if task % 16 < 8 { &replicas.a.1 } else { &replicas.b.1 }).await;
        let mut counts = [(200, 0), (401, 0), (503, 0)];
        for key in keys.iter().skip(task).step_by(TASKS) {
            let status = client.get("/keys/self", key).await.status;
            counts.iter_mut().find(|(known, _)| *known == status).unwrap().1 += 1;
        }
        counts
    });
    let all = future::join_all(tasks).await;
    [0, 1, 2].map(|n| (all[0][n].0, all.iter().map(|counts| counts[n].1).sum()))
}

fn texts(keys: &[TestKey]) -> Vec<String> {
    keys.iter().map(|key| key.text.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_thousand_forged_keys_cost_no_query_and_no_entry() {
    const FLOOD: usize = 50_000;
    let _serial = serial().await;
    let (replicas, proxy) = TwoReplicas::start_with_proxy("on").await;

    let (forger, key) = (forger(), replicas.create_key().await);
    replicas.warm(&key).await;
    let forged: Vec<String> = (0..FLOOD)
        .map(|n| {
            let forged = forger.generate(KeyEnv::Live, getrandom::fill).unwrap().text.expose_secret().to_owned();
            match n % 5 {
                // A valid key with a typo, which its checksum detects.
                0 => format!("{}{}", &key.text[..55], if key.text.ends_with('x') { 'y' } else { 'x' }),
                1 => forged[..n % forged.len()].to_owned() + "x",
                // The right form and checksum: only the tag detects the forgery.
                _ => forged,
            }
        })
        .collect();
    let (looked_up, entries) = (lookups(&replicas).await, size(&replicas));
    let (statuses, took, trips, own) = round_trips(&proxy, use_all(&replicas, &forged)).await;

    assert_eq!(statuses, [(200, 0), (401, FLOOD), (503, 0)]);

    let (looked_up, entries) = (lookups(&replicas).await - looked_up, size(&replicas) - entries);
    eprintln!(
        "{FLOOD} forged keys in {took:.1?}: {looked_up} look-ups, {trips} round trips to Postgres (idle replicas: up to \
         {own}), {entries} entries in Redis"
    );
    assert_eq!((looked_up, entries), (0.0, 0));
    assert!(trips <= own, "{trips}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_keys_with_a_valid_tag_cost_a_bounded_amount() {
    const FLOOD: usize = 10_000;
    let _serial = serial().await;
    let (replicas, proxy) = TwoReplicas::start_with_proxy("on").await;

    let key = replicas.create_key().await;
    replicas.warm(&key).await;
    let unknown: Vec<String> = (0..FLOOD).map(|_| replicas.key_factory.unknown_key().text).collect();
    let entries = size(&replicas);
    let others = async {
        let mut client = RawClient::connect(&replicas.a.1).await;
        for _ in 0..500 {
            client.get("/keys/self", &key.text).await.expect(200);
        }
    };
    let flood = future::join(use_all(&replicas, &unknown), others);
    let ((statuses, ()), took, trips, own) = round_trips(&proxy, flood).await;
    let at_once = size(&replicas) - entries;
    let [(_, accepted), (_, refused), (_, busy)] = statuses;

    assert_eq!(accepted, 0);
    assert_eq!(refused + busy, FLOOD);
    assert!(trips <= u64::try_from(FLOOD).unwrap() + own, "{trips}");

    let seconds = usize::try_from(took.as_secs()).unwrap() + 2;
    let remembered = 2 * 100 * seconds;
    // Also at its height: no lease outlives its look-up, and there are no more look-ups than tasks.
    assert!(at_once <= remembered + TASKS, "{at_once} in {seconds} s");

    let left = poll_until("leases to end", Duration::from_secs(30), async || {
        let kinds = replicas.redis.cli(&["--raw", "eval", KINDS, "0"]);
        let (leases, others) = kinds.trim_end().split_once(' ').unwrap();
        (leases == "0").then(|| others.parse::<usize>().unwrap())
    })
    .await;

    eprintln!(
        "{FLOOD} unknown keys in {took:.1?}: {trips} round trips to Postgres, {refused} refused, {busy} answered \
         503; {at_once} entries in Redis at the end, {left} three seconds later"
    );
    assert!(left <= remembered, "{left} in {seconds} s");
    // Without the bound there would be more entries than that.
    assert!(FLOOD > remembered + TASKS, "the flood was too slow to show anything: {seconds} s");
}

const KINDS: &str = "
local leases, others = 0, 0
for _, key in ipairs(redis.call('KEYS', '*:ak1:*')) do
  if redis.call('GETRANGE', key, 0, 0) == 'L' then leases = leases + 1 else others = others + 1 end
end
return leases .. ' ' .. others";

async fn hot(l1: &str) {
    const KEYS: usize = 200;
    const ROUNDS: usize = 100;
    let (replicas, proxy) = TwoReplicas::start_with_proxy(l1).await;
    let keys = texts(&replicas.create_keys(KEYS).await);
    let all: Vec<String> = keys.iter().cycle().take(KEYS * ROUNDS).cloned().collect();
    let hits = async |tier| {
        let labels = [("tier", tier), ("result", "accepted")];
        metric(&replicas.a.1, "identity_verify_total", &labels).await
            + metric(&replicas.b.1, "identity_verify_total", &labels).await
    };
    #[allow(clippy::cast_precision_loss, reason = "thousands")]
    let total = all.len() as f64;
    // On a machine that stands still for 50 ms Redis counts as hung and is not used for a second; the process logs it.
    let failures = async || {
        let [a, b] = [&replicas.a.1, &replicas.b.1]
            .map(|base| metric(base, "identity_cache_fill_total", &[("outcome", "error")]));
        #[allow(clippy::cast_precision_loss, reason = "few")]
        let redis_timeouts = (redis_timeouts(&replicas.a.0) + redis_timeouts(&replicas.b.0)) as f64;
        a.await + b.await + redis_timeouts
    };
    // In the first round the keys are new. In the first round after one without a failure of Redis, all are cached.
    let mut calm = false;
    for _ in 0..10 {
        let failed = failures().await;
        let before = [hits("l1").await, hits("redis").await, lookups(&replicas).await];
        let (statuses, took, trips, own) = round_trips(&proxy, use_all(&replicas, &all)).await;
        let after = [hits("l1").await, hits("redis").await, lookups(&replicas).await];
        let [from_l1, from_redis, looked_up] = [0, 1, 2].map(|n| after[n] - before[n]);
        // Log lines of the process take a moment to arrive here.
        let deadline = Instant::now() + Duration::from_secs(5);
        while calm && looked_up > 0.0 && failures().await == failed && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let failed = failures().await - failed;
        eprintln!(
            "{total} requests of {KEYS} keys in {took:.1?}, L1 {l1}: {from_l1} from the process, {from_redis} from \
             Redis, {looked_up} look-ups, {failed} failures of Redis, {trips} round trips to Postgres (idle replicas: up to \
             {own})"
        );
        if calm && failed == 0.0 {
            assert_eq!(looked_up, 0.0, "keys in use are looked up");
            assert_eq!((statuses[0].1, from_l1 + from_redis), (all.len(), total));
            assert!(trips <= own, "{trips}");
            assert!(l1 == "off" || from_l1 > 0.9 * total, "{from_l1}");
            return;
        }
        calm = failed == 0.0;
        assert!(!calm || looked_up <= total / 20.0, "hit ratio: {looked_up}");
    }
    panic!("Redis never answered for two rounds");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_use_cause_no_postgres_lookups() {
    let _serial = serial().await;
    hot("on").await;
    hot("off").await;
}
