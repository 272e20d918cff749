//! Every key that this program uses in Redis, in one list.
//!
//! A key is `app:<cluster>:<what>`: two clusters that share a server never use the same key. Nothing in Redis is the
//! only copy of anything, so that a server which loses its data costs time and no correctness.

use data_encoding::BASE64URL_NOPAD;

use crate::core::id::{ClusterId, HostId, KeyId, TenantId};

/// A key in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisKey<'a> {
    /// List: wake-ups for the worker of one host (`core::queue::notify`).
    HostWakeups(HostId),
    /// List: wake-ups for any worker.
    AnyWakeups,
    /// String: what the API key with this hash may do, signed (`core::identity::cache`). Expires.
    ApiKey(&'a [u8]),
    /// Stream: hashes of API keys that were changed, for the caches of all processes.
    InvalidationLog,
    /// Hash: up to which entry each process has applied the stream.
    InvalidationsAcked,
    /// String: a random text that is lost with the server's data, so that readers notice a loss.
    InvalidationEpoch,
    /// String: the rate limit's state of one API key (`core::identity::rate_limit`). Expires.
    RateLimit(KeyId),
    /// String: the tenant wrote within the last seconds (`core::read_your_writes`). Expires.
    RecentWrite(TenantId),
    /// String: any tenant may have written within the last seconds. Expires.
    AnyRecentWrite,
    /// String: the run id of the server that recorded the writes.
    RecentWriteServer,
}

impl RedisKey<'_> {
    /// Returns the key's name for this cluster.
    pub fn name(self, cluster: ClusterId) -> String {
        let what = match self {
            Self::HostWakeups(host) => format!("wakeups:host:{host}"),
            Self::AnyWakeups => "wakeups:any".into(),
            Self::ApiKey(hash) => format!("ak1:{}", BASE64URL_NOPAD.encode(hash)),
            Self::InvalidationLog => "ak:log".into(),
            Self::InvalidationsAcked => "ak:acked".into(),
            Self::InvalidationEpoch => "ak:epoch".into(),
            Self::RateLimit(key) => format!("rate:{key}"),
            Self::RecentWrite(tenant) => format!("recent_write:tenant:{tenant}"),
            Self::AnyRecentWrite => "recent_write:any".into(),
            Self::RecentWriteServer => "recent_write:server".into(),
        };
        format!("app:{cluster}:{what}")
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    /// One key of each kind, all for the same UUID where they have one.
    fn one_of_each(hash: &[u8]) -> [RedisKey<'_>; 10] {
        let id = uuid::Uuid::now_v7();
        // A new kind does not compile here until it is in the list below.
        match RedisKey::AnyWakeups {
            RedisKey::HostWakeups(_)
            | RedisKey::AnyWakeups
            | RedisKey::ApiKey(_)
            | RedisKey::InvalidationLog
            | RedisKey::InvalidationsAcked
            | RedisKey::InvalidationEpoch
            | RedisKey::RateLimit(_)
            | RedisKey::RecentWrite(_)
            | RedisKey::AnyRecentWrite
            | RedisKey::RecentWriteServer => [
                RedisKey::HostWakeups(id.into()),
                RedisKey::AnyWakeups,
                RedisKey::ApiKey(hash),
                RedisKey::InvalidationLog,
                RedisKey::InvalidationsAcked,
                RedisKey::InvalidationEpoch,
                RedisKey::RateLimit(id.into()),
                RedisKey::RecentWrite(id.into()),
                RedisKey::AnyRecentWrite,
                RedisKey::RecentWriteServer,
            ],
        }
    }

    #[test]
    fn keys_have_the_clusters_prefix_and_never_collide() {
        let (ours, other) = (ClusterId::new(), ClusterId::new());
        let keys = one_of_each(&[7; 32]);

        let names: BTreeSet<String> = keys.iter().map(|key| key.name(ours)).collect();

        assert_eq!(names.len(), keys.len(), "{names:?}");
        assert!(names.iter().all(|name| name.starts_with(&format!("app:{ours}:"))), "{names:?}");
        assert!(keys.iter().all(|key| !names.contains(&key.name(other))));
    }

    fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.display().to_string(), fs::read_to_string(&path).expect("a source")));
            }
        }
    }

    #[test]
    fn no_other_file_of_core_makes_a_redis_key() {
        let mut files = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/core"), &mut files);

        let makers: Vec<&String> =
            files.iter().filter(|(_, text)| text.contains("\"app:")).map(|(path, _)| path).collect();

        assert!(matches!(makers[..], [only] if only.ends_with("src/core/redis/keys.rs")), "{makers:?}");
    }
}
