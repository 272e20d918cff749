//! What Redis holds for a key: one value whose first byte is its kind and whose next 16 are its nonce.
//!
//! ```text
//! L nonce                 a lease: somebody reads the primary          3 s
//! V nonce payload mac     valid                                        300 s less up to 30 s of jitter
//! N nonce mac             unknown                                      30 s
//! T nonce ver mac         refused: revoked, expired or suspended       900 s
//! ```
//! Values are compared and swapped by kind and nonce. The MAC covers the Redis key, so that who can write to Redis can
//! neither make a value nor move one to another key; what it does to an old value is up to `ver`, the feed and its age.
//! Nothing in a value is secret.

use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretSlice};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{CachedKey, KeyLookup};
use crate::core::identity::{Caller, Scope};

pub const LEASE_MS: i64 = 3_000;
pub const VALID_MS: i64 = 300_000;
const VALID_JITTER_MS: f64 = 30_000.0;
const UNKNOWN_MS: i64 = 30_000;
pub const TOMBSTONE_MS: i64 = 900_000;
/// Kind and nonce.
pub const PREFIX: usize = 17;
const MAC: usize = 16;

/// Kind and nonce: what compare-and-set compares.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CasToken(pub Vec<u8>);

/// A value read from Redis, as far as it can be trusted.
#[derive(Clone, Debug, PartialEq)]
pub enum Found<R> {
    Nothing,
    Lease,
    Valid(R, CasToken),
    Unknown,
    /// The key's version as of then.
    Tombstone(i64, CasToken),
    /// A wrong MAC, or a value for another time: to be replaced, never believed.
    Untrusted(CasToken),
}

#[derive(Serialize, Deserialize)]
struct Payload {
    #[serde(with = "hex32")]
    h: [u8; 32],
    v: i64,
    id: Uuid,
    n: String,
    t: Uuid,
    s: Vec<String>,
    x: Option<i64>,
    l: serde_json::Value,
    f: f64,
    d: f64,
}

/// Seals and opens values; knows the secrets of the cache, newest first.
pub struct EntrySigner {
    secrets: Vec<SecretSlice<u8>>,
}

impl EntrySigner {
    pub fn new(secrets: Vec<SecretSlice<u8>>) -> Self {
        Self { secrets }
    }

    /// A value for what the primary said, and how long it may live in milliseconds. `now`: Postgres' clock, seconds
    /// since 1970. `jitter`: uniform in 0..1.
    pub fn sign(&self, redis_key: &str, fact: &KeyLookup, nonce: [u8; 16], now: f64, jitter: f64) -> (Vec<u8>, i64) {
        let (kind, payload, ms) = match fact {
            KeyLookup::Valid(cached) => {
                #[allow(clippy::cast_possible_truncation, reason = "milliseconds within minutes")]
                let jitter = (VALID_JITTER_MS * jitter) as i64;
                let ms = cached.caller.expires_at.map_or(i64::MAX, |at| ms(super::seconds(at) - now));
                (b'V', serde_json::to_vec(&payload(cached)).unwrap_or_default(), (VALID_MS - jitter).min(ms))
            }
            KeyLookup::Refused { ver } => (b'T', ver.to_be_bytes().to_vec(), TOMBSTONE_MS),
            KeyLookup::Unknown { until_s } => (b'N', Vec::new(), until_s.map_or(UNKNOWN_MS, |s| UNKNOWN_MS.min(ms(s)))),
        };
        let mut value = [&[kind][..], &nonce, &payload].concat();
        let mac = self.mac(&self.secrets[0], redis_key, &value);
        value.extend_from_slice(&mac);
        (value, ms.max(1))
    }

    /// Reads a value. `hash`: the key asked for.
    pub fn open(&self, redis_key: &str, hash: &[u8; 32], value: Option<&[u8]>) -> Found<Arc<CachedKey>> {
        let Some(value) = value else { return Found::Nothing };
        let prefix = CasToken(value[..PREFIX.min(value.len())].to_vec());
        if value.len() == PREFIX && value[0] == b'L' {
            return Found::Lease;
        }
        if value.len() < PREFIX + MAC {
            return Found::Untrusted(prefix);
        }
        let (body, mac) = value.split_at(value.len() - MAC);
        let genuine = self.secrets.iter().any(|secret| self.mac(secret, redis_key, body).ct_eq(mac).into());
        if !genuine {
            metrics::counter!("identity_mac_fail_total").increment(1);
            return Found::Untrusted(prefix);
        }
        match (body[0], serde_json::from_slice::<Payload>(&body[PREFIX..])) {
            (b'V', Ok(payload)) => {
                let same: bool = payload.h.ct_eq(hash).into();
                if same { Found::Valid(Arc::new(cached(payload)), prefix) } else { Found::Untrusted(prefix) }
            }
            (b'N', _) => Found::Unknown,
            (b'T', _) => match body[PREFIX..].try_into() {
                Ok(ver) => Found::Tombstone(i64::from_be_bytes(ver), prefix),
                Err(_) => Found::Untrusted(prefix),
            },
            _ => Found::Untrusted(prefix),
        }
    }

    fn mac(&self, secret: &SecretSlice<u8>, redis_key: &str, body: &[u8]) -> [u8; MAC] {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret()).expect("HMAC takes a key of any length");
        mac.update(redis_key.as_bytes());
        mac.update(&[0]);
        mac.update(body);
        let full: [u8; 32] = mac.finalize().into_bytes().into();
        let mut short = [0; MAC];
        short.copy_from_slice(&full[..MAC]);
        short
    }
}

/// The value of a lease.
pub fn lease(nonce: [u8; 16]) -> CasToken {
    CasToken([&[b'L'][..], &nonce].concat())
}

fn ms(seconds: f64) -> i64 {
    #[allow(clippy::cast_possible_truncation, reason = "saturates, and is compared with minutes")]
    let ms = (seconds * 1000.0) as i64;
    ms
}

fn payload(cached: &CachedKey) -> Payload {
    Payload {
        h: cached.hash,
        v: cached.ver,
        id: cached.caller.key.uuid(),
        n: cached.caller.name.clone(),
        t: cached.caller.tenant.uuid(),
        s: cached.caller.scopes.iter().map(ToString::to_string).collect(),
        x: cached.caller.expires_at.and_then(|at| i64::try_from(at.unix_timestamp_nanos() / 1000).ok()),
        l: cached.caller.limits.clone(),
        f: cached.filled_at,
        d: cached.took,
    }
}

fn cached(payload: Payload) -> CachedKey {
    let expires_at = payload.x.and_then(|us| OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1000).ok());
    CachedKey {
        hash: payload.h,
        ver: payload.v,
        caller: Arc::new(Caller {
            key: payload.id.into(),
            name: payload.n,
            tenant: payload.t.into(),
            scopes: payload.s.iter().filter_map(|text| text.parse::<Scope>().ok()).collect(),
            expires_at,
            limits: payload.l,
        }),
        filled_at: payload.f,
        took: payload.d,
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
    use super::*;
    use crate::core::id::{KeyId, TenantId};

    fn sign(byte: u8) -> EntrySigner {
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
                limits: serde_json::json!({"rps": 5}),
            }),
            filled_at: 1_000.5,
            took: 0.002,
        })
    }

    #[test]
    fn values_read_back_and_never_outlive_the_key() {
        let (sign, cached) = (sign(1), sample());
        let (value, ms) = sign.sign("k", &KeyLookup::Valid(cached.clone()), [9; 16], 1_999_999_999.0, 0.0);
        assert_eq!(ms, 1000, "one second before it expires");
        assert_eq!(sign.open("k", &[7; 32], Some(&value)), Found::Valid(cached, CasToken(value[..17].to_vec())));
        let (value, ms) = sign.sign("k", &KeyLookup::Refused { ver: 4 }, [9; 16], 0.0, 0.0);
        let tombstone = Found::Tombstone(4, CasToken(value[..17].to_vec()));
        assert_eq!((sign.open("k", &[7; 32], Some(&value)), ms), (tombstone, TOMBSTONE_MS));
        let (value, ms) = sign.sign("k", &KeyLookup::Unknown { until_s: Some(2.0) }, [9; 16], 0.0, 0.0);
        assert_eq!((sign.open("k", &[7; 32], Some(&value)), ms), (Found::Unknown, 2000));
        assert_eq!(sign.open("k", &[7; 32], Some(&lease([9; 16]).0)), Found::Lease);
        assert_eq!(sign.open("k", &[7; 32], None), Found::Nothing);
    }

    #[test]
    fn whoever_can_write_to_redis_can_make_move_or_change_nothing() {
        let (sign, cached) = (sign(1), sample());
        let (value, _) = sign.sign("k", &KeyLookup::Valid(cached), [9; 16], 0.0, 0.5);
        let untrusted = Found::Untrusted(CasToken(value[..17].to_vec()));
        assert_eq!(sign.open("another", &[7; 32], Some(&value)), untrusted, "moved");
        assert_eq!(sign.open("k", &[8; 32], Some(&value)), untrusted, "another key with the same first half");
        assert_eq!(self::sign(2).open("k", &[7; 32], Some(&value)), untrusted, "another secret");
        for at in 0..value.len() {
            let mut changed = value.clone();
            changed[at] ^= 1;
            assert!(matches!(sign.open("k", &[7; 32], Some(&changed)), Found::Untrusted(_)), "byte {at}");
        }
        for short in 0..40 {
            assert!(!matches!(sign.open("k", &[7; 32], Some(&value[..short])), Found::Valid(..)), "{short} bytes");
        }
    }

    #[test]
    fn an_older_secret_still_opens() {
        let (value, _) = sign(1).sign("k", &KeyLookup::Valid(sample()), [9; 16], 0.0, 0.0);
        let rotated = EntrySigner::new(vec![vec![2; 32].into(), vec![1; 32].into()]);
        assert!(matches!(rotated.open("k", &[7; 32], Some(&value)), Found::Valid(..)));
    }
}
