//! What a Redis entry may be, and the rules of its world.

use super::super::verify::Refusal;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fact {
    Active,
    Revoked,
}

impl Refusal for Fact {
    fn unknown() -> Self {
        Self::Revoked
    }

    fn refused() -> Self {
        Self::Revoked
    }
}

/// The entry. A number is a nonce; two that nobody can compare may be equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cell {
    Nothing,
    Lease(u8),
    Valid(u8),
    Tombstone,
    /// Put there by somebody without the secret.
    Forged(u8),
}

/// How a fill is done; ours compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filling {
    Compare,
    Set,
    SetIfNothing,
}

/// The rules of a world. Those of the second half are ours, or what is missing.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub readers: usize,
    /// Entries vanish at any time.
    pub vanishing: bool,
    /// No GET is answered.
    pub down: bool,
    /// Commands are lost before or after they were done, or done late; readers die.
    pub failures: bool,
    /// Valid entries are filled anew ahead of time.
    pub refreshing: bool,
    pub forger: bool,
    /// Who forges may also put back what was there once.
    pub replanting: bool,
    /// Redis may fall back to what it was, once.
    pub falling_back: bool,
    pub filling: Filling,
    /// A revocation leaves a tombstone; else nothing.
    pub tombstone: bool,
    pub database_first: bool,
    /// Fills may read a replica.
    pub replica: bool,
    /// A revocation returns though Redis was not told.
    pub lying: bool,
    /// The feed is heard, and counts as part of the revocation.
    pub feed: bool,
}

pub const OURS: Rules = Rules {
    readers: 2,
    vanishing: true,
    down: false,
    failures: false,
    refreshing: false,
    forger: false,
    replanting: false,
    falling_back: false,
    filling: Filling::Compare,
    tombstone: true,
    database_first: true,
    replica: false,
    lying: false,
    feed: false,
};
