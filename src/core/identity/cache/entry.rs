//! The values in Redis: one per key, whose first byte is its kind and whose next 16 bytes are its nonce.
//!
//! ```text
//! L nonce                 lease: a process reads the primary           3 s
//! V nonce payload mac     the key is valid                             300 s less up to 30 s of jitter
//! N nonce mac             no such key                                  30 s
//! T nonce ver mac         tombstone: revoked, expired or suspended     900 s
//! ```
//! Values are replaced by compare-and-set on kind and nonce (`CasToken`). The MAC covers the value and its Redis key,
//! so an attacker who can write to Redis can neither make a value nor move one to another key. An old value that is put
//! back is detected by its version, its age and the version feed. Values are signed, not encrypted: nothing in them is
//! secret.

use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretSlice};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use uuid::Uuid;

use super::key::{CachedKey, KeyLookup, unix_seconds};
use crate::core::identity::{
    caller::{Caller, Scope},
    limits::KeyLimits,
};

/// The time to live of a lease, in milliseconds.
pub const LEASE_TTL_MS: i64 = 3_000;
/// The longest time to live of a valid entry, in milliseconds.
pub const VALID_TTL_MS: i64 = 300_000;
/// A random part of up to this much is taken off, so that entries filled together do not end together.
const VALID_JITTER_MAX_MS: f64 = 30_000.0;
const UNKNOWN_TTL_MS: i64 = 30_000;
/// The time to live of a tombstone, in milliseconds.
pub const TOMBSTONE_TTL_MS: i64 = 900_000;
const CAS_TOKEN_BYTES: usize = 17;
const MAC_BYTES: usize = 16;

/// Kind and nonce of a value: what compare-and-set compares.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CasToken(pub Vec<u8>);

/// A value read from Redis, after its MAC was checked. `L` stands for a lookup.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry<L> {
    /// Redis has no value.
    Missing,
    /// A process holds the lease.
    Lease,
    /// The key is valid.
    Valid(L, CasToken),
    /// There is no such key.
    Unknown,
    /// The key was refused at this version.
    Tombstone(i64, CasToken),
    /// The MAC is wrong, or the value belongs to another key or another time. It is replaced and never used.
    Untrusted(CasToken),
}

/// A value to be written to Redis.
#[derive(Clone, Debug)]
pub struct SignedEntry {
    /// Kind, nonce, payload and MAC.
    pub value: Vec<u8>,
    /// Its time to live, in milliseconds; at least 1.
    pub ttl_ms: i64,
}

// Field names are one letter, since every cached key carries them.
#[derive(Serialize, Deserialize)]
struct Payload {
    #[serde(rename = "h", with = "hex32")]
    hash: [u8; 32],
    #[serde(rename = "v")]
    ver: i64,
    #[serde(rename = "id")]
    key: Uuid,
    #[serde(rename = "n")]
    name: String,
    #[serde(rename = "t")]
    tenant: Uuid,
    // Texts, not `Scope`s: the process that wrote the entry may be of a newer release.
    #[serde(rename = "s")]
    scopes: Vec<String>,
    /// Microseconds since 1970.
    #[serde(rename = "x")]
    expires_at_us: Option<i64>,
    #[serde(rename = "l")]
    limits: KeyLimits,
    #[serde(rename = "f")]
    filled_at: f64,
    #[serde(rename = "d")]
    read_seconds: f64,
}

/// Signs values and verifies their MACs, under the secrets of the cache, newest first.
pub struct EntrySigner {
    secrets: Vec<SecretSlice<u8>>,
}

impl EntrySigner {
    /// Makes a signer. The first of `secrets` signs; all of them verify.
    pub fn new(secrets: Vec<SecretSlice<u8>>) -> Self {
        Self { secrets }
    }

    /// Signs the value that stands for `lookup` under `redis_key`. `now`: Postgres' clock, in seconds since 1970.
    /// `jitter`: uniform in 0..1.
    pub fn sign(&self, redis_key: &str, lookup: &KeyLookup, nonce: [u8; 16], now: f64, jitter: f64) -> SignedEntry {
        let (kind, payload, ttl_ms) = match lookup {
            KeyLookup::Valid(cached) => {
                #[allow(clippy::cast_possible_truncation, reason = "milliseconds within minutes")]
                let jitter = (VALID_JITTER_MAX_MS * jitter) as i64;
                let left = cached.caller.expires_at.map_or(i64::MAX, |at| millis(unix_seconds(at) - now));
                (b'V', serde_json::to_vec(&payload(cached)).unwrap_or_default(), (VALID_TTL_MS - jitter).min(left))
            }
            KeyLookup::Refused { ver } => (b'T', ver.to_be_bytes().to_vec(), TOMBSTONE_TTL_MS),
            KeyLookup::Unknown { valid_in_s } => {
                (b'N', Vec::new(), valid_in_s.map_or(UNKNOWN_TTL_MS, |s| UNKNOWN_TTL_MS.min(millis(s))))
            }
        };
        let mut value = [&[kind][..], &nonce, &payload].concat();
        let mac = self.mac(&self.secrets[0], redis_key, &value);
        value.extend_from_slice(&mac);
        SignedEntry { value, ttl_ms: ttl_ms.max(1) }
    }

    /// Verifies a value that Redis holds under `redis_key` for the key with this hash.
    pub fn verify(&self, redis_key: &str, hash: &[u8; 32], value: Option<&[u8]>) -> Entry<Arc<CachedKey>> {
        let Some(value) = value else { return Entry::Missing };
        let token = CasToken(value[..CAS_TOKEN_BYTES.min(value.len())].to_vec());
        if value.len() == CAS_TOKEN_BYTES && value[0] == b'L' {
            return Entry::Lease;
        }
        if value.len() < CAS_TOKEN_BYTES + MAC_BYTES {
            return Entry::Untrusted(token);
        }
        let (body, mac) = value.split_at(value.len() - MAC_BYTES);
        let is_genuine = self.secrets.iter().any(|secret| self.mac(secret, redis_key, body).ct_eq(mac).into());
        if !is_genuine {
            metrics::counter!("identity_mac_fail_total").increment(1);
            return Entry::Untrusted(token);
        }
        match (body[0], serde_json::from_slice::<Payload>(&body[CAS_TOKEN_BYTES..])) {
            (b'V', Ok(payload)) => {
                let is_same_key: bool = payload.hash.ct_eq(hash).into();
                if is_same_key { Entry::Valid(Arc::new(cached(payload)), token) } else { Entry::Untrusted(token) }
            }
            (b'N', _) => Entry::Unknown,
            (b'T', _) => match body[CAS_TOKEN_BYTES..].try_into() {
                Ok(ver) => Entry::Tombstone(i64::from_be_bytes(ver), token),
                Err(_) => Entry::Untrusted(token),
            },
            _ => Entry::Untrusted(token),
        }
    }

    fn mac(&self, secret: &SecretSlice<u8>, redis_key: &str, body: &[u8]) -> [u8; MAC_BYTES] {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret()).expect("HMAC takes a key of any length");
        mac.update(redis_key.as_bytes());
        mac.update(&[0]);
        mac.update(body);
        let full: [u8; 32] = mac.finalize().into_bytes().into();
        let mut short = [0; MAC_BYTES];
        short.copy_from_slice(&full[..MAC_BYTES]);
        short
    }
}

/// Returns the value of a lease with this nonce.
pub fn lease(nonce: [u8; 16]) -> CasToken {
    CasToken([&[b'L'][..], &nonce].concat())
}

fn millis(seconds: f64) -> i64 {
    #[allow(clippy::cast_possible_truncation, reason = "saturates, and is compared with minutes")]
    let millis = (seconds * 1000.0) as i64;
    millis
}

fn payload(cached: &CachedKey) -> Payload {
    let caller = &cached.caller;
    Payload {
        hash: cached.hash,
        ver: cached.ver,
        key: caller.key.uuid(),
        name: caller.name.clone(),
        tenant: caller.tenant.uuid(),
        scopes: caller.scopes.iter().map(ToString::to_string).collect(),
        expires_at_us: caller.expires_at.and_then(|at| i64::try_from(at.unix_timestamp_nanos() / 1000).ok()),
        limits: caller.limits,
        filled_at: cached.filled_at,
        read_seconds: cached.read_seconds,
    }
}

fn cached(payload: Payload) -> CachedKey {
    let time = |us| OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1000).ok();
    let key = payload.key.into();
    CachedKey {
        hash: payload.hash,
        ver: payload.ver,
        caller: Arc::new(Caller {
            key,
            name: payload.name,
            tenant: payload.tenant.into(),
            scopes: Scope::known(key, &payload.scopes),
            expires_at: payload.expires_at_us.and_then(time),
            limits: payload.limits,
        }),
        filled_at: payload.filled_at,
        read_seconds: payload.read_seconds,
    }
}

mod hex32 {
    use data_encoding::HEXLOWER;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(D::Error::custom)?;
        bytes.try_into().map_err(|_| D::Error::custom("not 32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        config::identity::RateLimit,
        core::id::{KeyId, TenantId},
    };

    fn signer(byte: u8) -> EntrySigner {
        EntrySigner::new(vec![vec![byte; 32].into()])
    }

    fn sample() -> Arc<CachedKey> {
        Arc::new(CachedKey {
            hash: [7; 32],
            ver: 3,
            caller: Arc::new(Caller {
                key: KeyId::new(),
                name: "ci".into(),
                tenant: TenantId::new(),
                scopes: vec![Scope::InstancesRead],
                expires_at: OffsetDateTime::from_unix_timestamp(2_000_000_000).ok(),
                limits: KeyLimits::own(RateLimit { rps: 5.0, burst: 9 }),
            }),
            filled_at: 1_000.5,
            read_seconds: 0.002,
        })
    }

    fn token(value: &[u8]) -> CasToken {
        CasToken(value[..17].to_vec())
    }

    #[test]
    fn values_read_back_and_never_outlive_the_key() {
        let (signer, cached) = (signer(1), sample());

        let valid = signer.sign("k", &KeyLookup::Valid(cached.clone()), [9; 16], 1_999_999_999.0, 0.0);
        let refused = signer.sign("k", &KeyLookup::Refused { ver: 4 }, [9; 16], 0.0, 0.0);
        let unknown = signer.sign("k", &KeyLookup::Unknown { valid_in_s: Some(2.0) }, [9; 16], 0.0, 0.0);

        let verify = |value: &[u8]| signer.verify("k", &[7; 32], Some(value));
        assert_eq!(verify(&valid.value), Entry::Valid(cached, token(&valid.value)));
        assert_eq!(valid.ttl_ms, 1000, "one second before it expires");
        assert_eq!(verify(&refused.value), Entry::Tombstone(4, token(&refused.value)));
        assert_eq!(refused.ttl_ms, TOMBSTONE_TTL_MS);
        assert_eq!((verify(&unknown.value), unknown.ttl_ms), (Entry::Unknown, 2000));
        assert_eq!(verify(&lease([9; 16]).0), Entry::Lease);
        assert_eq!(signer.verify("k", &[7; 32], None), Entry::Missing);
    }

    #[test]
    fn values_that_were_moved_or_changed_are_untrusted() {
        let (signer, cached) = (signer(1), sample());

        let SignedEntry { value, .. } = signer.sign("k", &KeyLookup::Valid(cached), [9; 16], 0.0, 0.5);

        let untrusted = Entry::Untrusted(token(&value));
        assert_eq!(signer.verify("another", &[7; 32], Some(&value)), untrusted, "moved");
        assert_eq!(signer.verify("k", &[8; 32], Some(&value)), untrusted, "another key with the same first half");
        assert_eq!(self::signer(2).verify("k", &[7; 32], Some(&value)), untrusted, "another secret");
        for at in 0..value.len() {
            let mut changed = value.clone();
            changed[at] ^= 1;
            assert!(matches!(signer.verify("k", &[7; 32], Some(&changed)), Entry::Untrusted(_)), "byte {at}");
        }
        for short in 0..40 {
            assert!(!matches!(signer.verify("k", &[7; 32], Some(&value[..short])), Entry::Valid(..)), "{short} bytes");
        }
    }

    proptest! {
        #[test]
        fn bytes_that_no_process_signed_say_nothing_about_a_key(bytes in any::<Vec<u8>>(), kind in "[VTNL]") {
            for value in [bytes.clone(), [kind.as_bytes(), &bytes].concat()] {
                let entry = signer(1).verify("k", &[7; 32], Some(&value));

                prop_assert!(matches!(entry, Entry::Untrusted(_) | Entry::Lease), "{value:?}");
            }
        }
    }

    #[test]
    fn value_of_an_older_secret_verifies() {
        let SignedEntry { value, .. } = signer(1).sign("k", &KeyLookup::Valid(sample()), [9; 16], 0.0, 0.0);

        let rotated = EntrySigner::new(vec![vec![2; 32].into(), vec![1; 32].into()]);

        assert!(matches!(rotated.verify("k", &[7; 32], Some(&value)), Entry::Valid(..)));
    }

    #[test]
    fn scope_of_a_newer_release_in_a_value_grants_nothing() {
        let mut payload = payload(&sample());
        payload.scopes.push("volumes:write".into());

        assert_eq!(cached(payload).caller.scopes, [Scope::InstancesRead]);
    }
}
