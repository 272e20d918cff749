//! The values that a Redis entry can have in the model, and the rules of the model.

use super::super::verify::NegativeLookup;

/// The state of the key in Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyState {
    Active,
    Revoked,
}

impl NegativeLookup for KeyState {
    fn unknown() -> Self {
        Self::Revoked
    }

    fn refused() -> Self {
        Self::Revoked
    }
}

/// The value in Redis. A number is a nonce; two nonces that no process can compare may be equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoredValue {
    Missing,
    Lease(u8),
    Valid(u8),
    Tombstone,
    /// Written by an attacker, who does not have the secret.
    Forged(u8),
}

/// How a value is written after a read of the primary. Production compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillRule {
    Compare,
    Set,
    SetIfMissing,
}

/// The rules of a model. Those of the second half are ours, or one of them is missing.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub readers: usize,
    /// Entries vanish at any time.
    pub vanishing: bool,
    /// No GET is answered.
    pub down: bool,
    /// Commands are lost before or after they were executed, or executed late; readers die.
    pub failures: bool,
    /// Valid entries are refreshed ahead of time.
    pub refreshing: bool,
    /// An attacker without the secret writes entries.
    pub forger: bool,
    /// An attacker may put back a value that was there once.
    pub replanting: bool,
    /// Redis may return to an older state, once.
    pub falling_back: bool,
    pub fill: FillRule,
    /// A revocation leaves a tombstone; otherwise it deletes the entry.
    pub tombstone: bool,
    pub database_first: bool,
    /// Fills may read a replica.
    pub replica: bool,
    /// A revocation returns although Redis did not execute it.
    pub lying: bool,
    /// The version feed is read, and counts as part of the revocation.
    pub feed: bool,
}

/// The rules of production.
pub const PRODUCTION: Rules = Rules {
    readers: 2,
    vanishing: true,
    down: false,
    failures: false,
    refreshing: false,
    forger: false,
    replanting: false,
    falling_back: false,
    fill: FillRule::Compare,
    tombstone: true,
    database_first: true,
    replica: false,
    lying: false,
    feed: false,
};
