//! The protocol of one verification beyond the process: a state machine without I/O.
//!
//! ```text
//! Get ─ valid, refused, unknown ─► Done
//!  ├─ missing ─► AcquireLease ─ granted ─► ReadPrimary ─► Fill: swap the lease for the result ─► Done
//!  ├─ untrusted ─► TakeOver: swap it for a lease ─ as above
//!  ├─ another's lease ─► Wait 5, 10, 20 ms, Get again; then ReadPrimary without a fill ─► Done
//!  └─ Redis failed ─► ReadPrimary without a fill ─► Done
//! ```
//! A fill succeeds only while the lease that it was made under is still there, and every revocation removes the lease.
//! So the value of a hit was read from the primary after the last revocation took effect in Redis; `docs/identity.md`
//! has the proof, `model` the exhaustive check.

use std::time::Duration;

use super::entry::{CasToken, Entry};

const LEASE_WAIT_INTERVALS: [Duration; 3] =
    [Duration::from_millis(5), Duration::from_millis(10), Duration::from_millis(20)];

/// The next action of the caller of the state machine. `L` stands for a lookup.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action<L> {
    /// Read the key's value.
    Get,
    /// Write this lease if there is no value; returns the value that was there.
    AcquireLease(CasToken),
    /// Replace the value that has the token `expected` by this lease.
    TakeOver {
        /// The token of the untrusted value.
        expected: CasToken,
        /// The lease to write.
        lease: CasToken,
    },
    /// Wait for another process to fill the entry.
    Wait(Duration),
    /// Read the primary.
    ReadPrimary {
        /// Whether the result will be offered to the cache.
        fills: bool,
    },
    /// Replace the lease by the result.
    Fill {
        /// The lease that the primary was read under.
        lease: CasToken,
        /// The result of the read of the primary.
        lookup: L,
    },
    /// The verification is over.
    Done(Answer<L>),
}

/// How a verification ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer<L> {
    /// The value came from Redis, so it may be kept in the process.
    Cached(L),
    /// This verification read the primary itself.
    Primary {
        /// The result of the read of the primary.
        lookup: L,
        /// Whether Redis took it.
        filled: bool,
    },
}

/// The result of an action.
#[derive(Clone, Debug)]
pub enum Event<L> {
    /// The value that `Get` or `AcquireLease` returned.
    Entry(Entry<L>),
    /// Whether `TakeOver` or `Fill` replaced the value.
    Swapped(bool),
    /// The wait is over.
    Waited,
    /// The result of the read of the primary.
    Read(L),
    /// Redis failed or did not answer in time.
    RedisFailed,
}

/// The state between two actions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State<L> {
    Getting { waits: usize },
    AcquiringLease(CasToken),
    TakingOver(CasToken),
    Reading { under: Option<CasToken> },
    Filling(L),
    Waiting { waits: usize },
}

/// One verification.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Verification<L> {
    state: State<L>,
    lease: CasToken,
}

/// The lookups that negative values in Redis stand for.
pub trait NegativeLookup: Clone {
    /// Returns the lookup of a key that does not exist.
    fn unknown() -> Self;
    /// Returns the lookup of a key that is refused.
    fn refused() -> Self;
}

impl<L: NegativeLookup> Verification<L> {
    /// Begins a verification with `Action::Get`. `lease` must be a value that was never used before.
    pub fn new(lease: CasToken) -> (Self, Action<L>) {
        (Self { state: State::Getting { waits: 0 }, lease }, Action::Get)
    }

    /// Returns the action that follows `event`.
    pub fn next(&mut self, event: Event<L>) -> Action<L> {
        let state = std::mem::replace(&mut self.state, State::Reading { under: None });
        match (state, event) {
            (_, Event::Entry(Entry::Valid(lookup, _))) => Action::Done(Answer::Cached(lookup)),
            (_, Event::Entry(Entry::Unknown)) => Action::Done(Answer::Cached(L::unknown())),
            (_, Event::Entry(Entry::Tombstone(..))) => Action::Done(Answer::Cached(L::refused())),
            (State::Getting { .. }, Event::Entry(Entry::Missing)) => {
                self.state = State::AcquiringLease(self.lease.clone());
                Action::AcquireLease(self.lease.clone())
            }
            // There was no value, so the lease is ours now.
            (State::AcquiringLease(lease), Event::Entry(Entry::Missing)) => self.read_under(lease),
            (State::Getting { .. } | State::AcquiringLease(_), Event::Entry(Entry::Untrusted(expected))) => {
                self.state = State::TakingOver(self.lease.clone());
                Action::TakeOver { expected, lease: self.lease.clone() }
            }
            (State::TakingOver(lease), Event::Swapped(true)) => self.read_under(lease),
            (State::Getting { waits }, Event::Entry(Entry::Lease)) => match LEASE_WAIT_INTERVALS.get(waits) {
                Some(wait) => {
                    self.state = State::Waiting { waits: waits + 1 };
                    Action::Wait(*wait)
                }
                None => Action::ReadPrimary { fills: false },
            },
            (State::AcquiringLease(_), Event::Entry(Entry::Lease)) => {
                self.state = State::Waiting { waits: 1 };
                Action::Wait(LEASE_WAIT_INTERVALS[0])
            }
            (State::Waiting { waits }, Event::Waited) => {
                self.state = State::Getting { waits };
                Action::Get
            }
            (State::Reading { under: Some(lease) }, Event::Read(lookup)) => {
                self.state = State::Filling(lookup.clone());
                Action::Fill { lease, lookup }
            }
            (State::Reading { under: None }, Event::Read(lookup)) => {
                Action::Done(Answer::Primary { lookup, filled: false })
            }
            (State::Filling(lookup), Event::Swapped(filled)) => Action::Done(Answer::Primary { lookup, filled }),
            (State::Filling(lookup), Event::RedisFailed) => Action::Done(Answer::Primary { lookup, filled: false }),
            // The swap was refused, Redis failed, or an event came out of order: the primary decides, without a fill.
            (_, Event::Swapped(_) | Event::RedisFailed | Event::Waited | Event::Read(_) | Event::Entry(_)) => {
                Action::ReadPrimary { fills: false }
            }
        }
    }

    fn read_under(&mut self, lease: CasToken) -> Action<L> {
        self.state = State::Reading { under: Some(lease) };
        Action::ReadPrimary { fills: true }
    }
}
