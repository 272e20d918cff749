//! Rotation of the pepper of key hashes: keys made under the old pepper stay valid and are cached like others.

use std::time::Duration;

use app::{config::redis::RedisConfig, core::redis};
use fred::interfaces::KeysInterface;

use super::{metric, serve};
use crate::support::{Client, Cluster};

fn pepper(version: u8) -> String {
    format!("{version}:{}", format!("{version}e").repeat(32))
}

async fn from(base: &str, tier: &str) -> f64 {
    metric(base, "identity_verify_total", &[("tier", tier)]).await
}

const ENTRIES: &str = "ak1:";

/// Removes all entries of keys from Redis.
async fn remove_entries(cluster: &Cluster) {
    let redis = redis::client(&RedisConfig::parse(&cluster.redis_url).unwrap(), Duration::from_secs(5)).unwrap();
    for entry in cluster.in_redis(ENTRIES).await {
        redis.del::<(), _>(entry).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_an_old_pepper_are_cached_until_it_is_removed() {
    const REQUESTS: u32 = 50;
    let mut cluster = Cluster::simulated().await;
    let (old, both) = (pepper(1), format!("{},{}", pepper(2), pepper(1)));
    cluster.set("APP_KEY_PEPPERS", &old);
    let made_before = cluster.key("acme", "admin");
    cluster.set("APP_KEY_PEPPERS", &both);
    let made_after = cluster.key("acme", "admin");
    assert_eq!(cluster.sql().await.query("select distinct pepper_v from api_key", &[]).await.unwrap().len(), 2);

    let (api, base) = serve(&cluster);
    for key in [&made_before, &made_after] {
        let client = Client::new(&base, key);
        client.get("/keys/self").await.expect(200);
        // On a machine that stands still for a second the process does not use its cache for a while.
        let mut rounds = 0;
        loop {
            remove_entries(&cluster).await;
            let (kept, looked_up) = (from(&base, "l1").await, from(&base, "redis").await + from(&base, "pg").await);
            for _ in 0..REQUESTS {
                client.get("/keys/self").await.expect(200);
            }
            if from(&base, "redis").await + from(&base, "pg").await == looked_up {
                assert_eq!(from(&base, "l1").await, kept + f64::from(REQUESTS));
                // If the process had looked up the hash with the newer pepper first, it would have stored the result.
                assert_eq!(cluster.in_redis(ENTRIES).await, Vec::<String>::new());
                break;
            }
            rounds += 1;
            assert!(rounds < 5, "the process looks the key up again and again");
        }
    }
    drop(api);

    cluster.set("APP_KEY_PEPPERS", pepper(2));
    let (_api, base) = serve(&cluster);
    Client::new(&base, &made_before).get("/keys/self").await.expect(401);
    Client::new(&base, &made_after).get("/keys/self").await.expect(200);
}
