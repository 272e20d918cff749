//! The rate limit of a key: its own, or the general one of the cluster.
//!
//! In Postgres, Redis and JSON it is `{}` (the general limit) or `{"rps", "burst"}`. Anything else is an error of the
//! row: a limit that cannot be read is never replaced by the general one.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::config::identity::RateLimit;

/// How often a key may be used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KeyLimits(Option<RateLimit>);

impl KeyLimits {
    /// The general limit (`RATE_LIMIT_RPS`, `RATE_LIMIT_BURST`).
    pub const GENERAL: Self = Self(None);

    /// Returns a limit of the key's own.
    pub const fn own(limit: RateLimit) -> Self {
        Self(Some(limit))
    }

    /// Returns the key's own limit; `None`: the general one holds.
    pub const fn as_own(self) -> Option<RateLimit> {
        self.0
    }

    /// Returns the limit that holds; `None`: the key may be used without limit.
    pub fn effective(self, general: RateLimit) -> Option<RateLimit> {
        let limit = self.0.unwrap_or(general);
        (limit.rps > 0.0).then_some(limit)
    }

    /// Returns whether a key with the limits `other` may be used no more often than one with these.
    pub fn covers(self, other: Self, general: RateLimit) -> bool {
        match (self.effective(general), other.effective(general)) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(other)) => other.rps <= own.rps && other.burst <= own.burst,
        }
    }
}

// Fields that this release does not know are ignored: a newer one may have written them.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rps: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    burst: Option<u32>,
}

impl Serialize for KeyLimits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (rps, burst) = (self.0.map(|limit| limit.rps), self.0.map(|limit| limit.burst));
        Stored { rps, burst }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for KeyLimits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Stored::deserialize(deserializer)? {
            Stored { rps: None, burst: None } => Ok(Self::GENERAL),
            Stored { rps: Some(rps), burst: Some(burst) } => RateLimit::new(rps, burst)
                .map(Self::own)
                .ok_or_else(|| D::Error::custom(format_args!("limits out of range: {rps} per second, burst {burst}"))),
            Stored { .. } => Err(D::Error::custom("limits with one of rps and burst")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_are_read_as_they_are_stored() {
        for (limits, stored) in [
            (KeyLimits::GENERAL, json!({})),
            (KeyLimits::own(RateLimit { rps: 0.5, burst: 3 }), json!({"rps": 0.5, "burst": 3})),
            (KeyLimits::own(RateLimit { rps: 0.0, burst: 1 }), json!({"rps": 0.0, "burst": 1})),
        ] {
            assert_eq!(serde_json::to_value(limits).expect("JSON"), stored);
            assert_eq!(serde_json::from_value::<KeyLimits>(stored).expect("limits"), limits);
        }
    }

    #[test]
    fn limits_that_make_no_sense_are_an_error() {
        for stored in [
            json!({"rps": -1.0, "burst": 1}),
            json!({"rps": 1e-300, "burst": 1}),
            json!({"rps": 1e7, "burst": 1}),
            json!({"rps": 1.0, "burst": 0}),
            json!({"rps": 1.0, "burst": 1u64 << 40}),
            json!({"rps": 1.0}),
            json!({"burst": 1}),
            json!("fast"),
            json!(null),
        ] {
            assert!(serde_json::from_value::<KeyLimits>(stored.clone()).is_err(), "{stored}");
        }
    }

    #[test]
    fn limit_covers_another_that_is_as_strict() {
        let general = RateLimit { rps: 10.0, burst: 10 };
        let own = |rps, burst| KeyLimits::own(RateLimit { rps, burst });
        let unlimited = own(0.0, 1);

        for (one, other, covers) in [
            (unlimited, unlimited, true),
            (unlimited, KeyLimits::GENERAL, true),
            (KeyLimits::GENERAL, unlimited, false),
            (KeyLimits::GENERAL, own(10.0, 10), true),
            (KeyLimits::GENERAL, own(11.0, 10), false),
            (own(5.0, 5), own(5.0, 6), false),
            (own(5.0, 5), KeyLimits::GENERAL, false),
        ] {
            assert_eq!(one.covers(other, general), covers, "{one:?} {other:?}");
        }
    }
}
