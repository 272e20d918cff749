//! Creates thousands of keys at once with the cluster's own secrets, by one statement.

use app::{
    config::secrets::{KeySecrets, Versioned},
    core::identity::api_key::{KeyEnv, KeyRing, NewKey},
};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use secrecy::ExposeSecret;
use uuid::Uuid;

use crate::support::Cluster;

/// A key, and the name of its entry in Redis.
pub struct TestKey {
    pub id: Uuid,
    pub text: String,
    pub redis_key: String,
    pub hash: Vec<u8>,
}

/// Creates keys of one cluster.
pub struct KeyFactory {
    ring: KeyRing,
    sql: tokio_postgres::Client,
    cluster: Uuid,
}

impl KeyFactory {
    pub async fn of(cluster: &Cluster) -> Self {
        let sql = cluster.sql().await;
        let id = sql.query_one("select id from cluster", &[]).await.unwrap().get(0);
        Self { ring: KeyRing::new(&secrets(cluster)), sql, cluster: id }
    }

    /// Creates a tenant.
    pub async fn create_tenant(&self, name: &str) -> Uuid {
        let id = Uuid::now_v7();
        self.sql.execute("insert into tenants (id, name) values ($1, $2)", &[&id, &name]).await.unwrap();
        id
    }

    /// Creates keys of a tenant, which expire after `life` seconds.
    pub async fn create_keys(&self, n: usize, tenant: Uuid, scopes: &[&str], life: Option<f64>) -> Vec<TestKey> {
        let new: Vec<NewKey> = (0..n).map(|_| self.new_key()).collect();
        let ids: Vec<Uuid> = new.iter().map(|_| Uuid::now_v7()).collect();
        let hashes: Vec<&[u8]> = new.iter().map(|key| key.hash.as_slice()).collect();
        let pepper = new[0].pepper_version;
        self.sql
            .execute(
                "insert into api_key (id, tenant_id, name, env, key_hash, pepper_v, hint, scopes, expires_at, changed_at)
                 select id, $3, 'minted', 0, hash, $4, '', $5, now() + make_interval(secs => $6), '-infinity'
                 from unnest($1::uuid[], $2::bytea[]) as new (id, hash)",
                &[&ids, &hashes, &tenant, &pepper, &scopes, &life],
            )
            .await
            .unwrap();
        new.into_iter().zip(ids).map(|(key, id)| self.test_key(&key, id)).collect()
    }

    /// Returns a well-formed key with a valid tag that is in no table.
    pub fn unknown_key(&self) -> TestKey {
        self.test_key(&self.new_key(), Uuid::now_v7())
    }

    fn new_key(&self) -> NewKey {
        self.ring.generate(KeyEnv::Live, getrandom::fill).unwrap()
    }

    fn test_key(&self, key: &NewKey, id: Uuid) -> TestKey {
        let name = BASE64URL_NOPAD.encode(&key.hash[..16]);
        TestKey {
            id,
            text: key.text.expose_secret().to_owned(),
            redis_key: format!("app:{}:ak1:{name}", self.cluster),
            hash: key.hash.to_vec(),
        }
    }

    /// Waits until the key has expired by Postgres' clock.
    pub async fn wait_until_expired(&self, key: &TestKey) {
        let sleep = "select pg_sleep(greatest(0, extract(epoch from expires_at - clock_timestamp()))::float8)
                     from api_key where id = $1";
        self.sql.query(sleep, &[&key.id]).await.unwrap();
        while !self.has_expired(key).await {}
    }

    /// Returns whether the key has expired by Postgres' clock.
    pub async fn has_expired(&self, key: &TestKey) -> bool {
        let past = "select expires_at <= clock_timestamp() from api_key where id = $1";
        self.sql.query_one(past, &[&key.id]).await.unwrap().get(0)
    }
}

/// Reads the cluster's own secrets, and creates them when they are missing.
pub fn secrets(cluster: &Cluster) -> KeySecrets {
    cluster.run(&["secrets", "init"]);
    let secret = |file: &str| {
        let text = std::fs::read_to_string(cluster.state.path().join("secrets").join(file)).unwrap();
        let (version, hex) = text.trim().split_once(':').unwrap();
        let secret = HEXLOWER.decode(hex.as_bytes()).unwrap().into();
        vec![Versioned { version: version.parse().unwrap(), secret }]
    };
    KeySecrets { peppers: secret("key-peppers"), tags: secret("key-tag-secrets"), cache: secret("cache-secrets") }
}

/// Returns a key ring with other secrets: its keys have the right form and a wrong tag.
pub fn forger() -> KeyRing {
    let secret = || vec![Versioned { version: 1, secret: vec![9; 32].into() }];
    KeyRing::new(&KeySecrets { peppers: secret(), tags: secret(), cache: secret() })
}
