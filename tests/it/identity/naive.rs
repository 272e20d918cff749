//! The control: a naive cache. It reads by GET, else from Postgres with a SET, and revokes by UPDATE and DEL.
//!
//! It uses the same Postgres, Redis and client library as the real cache. The race must find errors in it: if it did
//! not, the race would prove nothing about the real one.

use std::time::Duration;

use app::{config::redis::RedisConfig, core::redis};
use fred::{clients::Client, interfaces::KeysInterface, types::Expiration};

use super::{
    key_factory::TestKey,
    race::{Reader, Verification},
};
use crate::support::Cluster;

const CONNECTIONS: usize = 4;

/// One process with connections of its own.
pub struct NaiveCache {
    redis: Vec<Client>,
    postgres: Vec<tokio_postgres::Client>,
}

impl NaiveCache {
    pub async fn start(cluster: &Cluster) -> Self {
        let config = RedisConfig::parse(&cluster.redis_url).unwrap();
        let (mut redis, mut postgres) = (Vec::new(), Vec::new());
        for _ in 0..CONNECTIONS {
            redis.push(redis::client(&config, Duration::from_secs(5)).unwrap());
            postgres.push(cluster.sql().await);
        }
        Self { redis, postgres }
    }

    fn redis(&self, n: usize) -> &Client {
        &self.redis[n % CONNECTIONS]
    }

    fn postgres(&self, n: usize) -> &tokio_postgres::Client {
        &self.postgres[n % CONNECTIONS]
    }

    pub async fn revoke(&self, task: usize, key: &TestKey) {
        let update = "update api_key set revoked_at = now() where id = $1";
        self.postgres(task).execute(update, &[&key.id]).await.unwrap();
        self.redis(task).del::<(), _>(name(key)).await.unwrap();
    }
}

fn name(key: &TestKey) -> String {
    format!("{}:naive", key.redis_key)
}

/// A reader that uses one of the processes.
pub struct NaiveReader<'a> {
    pub process: &'a NaiveCache,
    pub n: usize,
    /// Whether `evict` removes the key from Redis before its time.
    pub evicts: bool,
}

impl Reader for NaiveReader<'_> {
    async fn verify(&mut self, key: &TestKey) -> Verification {
        let redis = self.process.redis(self.n);
        let good = match redis.get::<Option<bool>, _>(name(key)).await.unwrap() {
            Some(good) => good,
            None => {
                let query = "select revoked_at is null and expires_at > now() is not false and suspended_at is null
                           from api_key join tenants on tenants.id = tenant_id where key_hash = $1";
                let good = self.process.postgres(self.n).query_one(query, &[&key.hash]).await.unwrap().get(0);
                let life = Some(Expiration::EX(300));
                redis.set::<(), _, _>(name(key), good, life, None, false).await.unwrap();
                good
            }
        };
        if good { Verification::Accepted } else { Verification::Refused }
    }

    async fn evict(&mut self, key: &TestKey) {
        if self.evicts {
            self.process.redis(self.n).del::<(), _>(name(key)).await.unwrap();
        }
    }
}
