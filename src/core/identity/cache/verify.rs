//! How one verification proceeds beyond the process: the protocol, without I/O.
//!
//! ```text
//! Get ─ valid, refused ─► Done
//!  ├─ nothing ─► Lease ─ granted ─► Read the primary ─► Swap lease for the fact ─► Done
//!  ├─ untrusted ─► Swap it for a lease ─ as above
//!  ├─ lease of another ─► Wait 5, 10, 20 ms, Get again; then Read the primary, fill nothing ─► Done
//!  └─ Redis failed ─► Read the primary, fill nothing ─► Done
//! ```
//! A fill is accepted only while the lease it was made under still stands, and every revocation removes the lease. So
//! what a hit shows was read from the primary after the last revocation took effect in Redis: see docs/identity.md.

use std::time::Duration;

use super::entry::{CasToken, Found};

const WAITS: [Duration; 3] = [Duration::from_millis(5), Duration::from_millis(10), Duration::from_millis(20)];

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action<F> {
    /// Read the key's value.
    Get,
    /// Put this lease if there is nothing; answers what was there.
    Lease(CasToken),
    /// Put this lease in place of `expected`.
    TakeOver {
        expected: CasToken,
        lease: CasToken,
    },
    Wait(Duration),
    /// Ask the primary; `fills`: the answer will be offered to the cache.
    Read {
        fills: bool,
    },
    /// Put the fact in place of the lease.
    Fill {
        lease: CasToken,
        fact: F,
    },
    Done(Answer<F>),
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer<F> {
    /// The cache vouches for it: it may be kept in the process.
    Cached(F),
    /// Read from the primary by this very verification; `kept`: the cache took it.
    Primary { fact: F, kept: bool },
}

/// What came of an action.
#[derive(Clone, Debug)]
pub enum Event<F> {
    Found(Found<F>),
    /// Whether a swap was done.
    Swapped(bool),
    Waited,
    Read(F),
    RedisFailed,
}

/// What is known between two actions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State<F> {
    Asked { waits: usize },
    AskedForLease(CasToken),
    TakingOver(CasToken),
    Reading { under: Option<CasToken> },
    Filling(F),
    Waiting { waits: usize },
}

/// One verification. `F`: a fact.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Verification<F> {
    state: State<F>,
    lease: CasToken,
}

/// The facts that values stand for, where the value says no.
pub trait Refusal: Clone {
    fn unknown() -> Self;
    fn refused() -> Self;
}

impl<F: Refusal> Verification<F> {
    /// `lease`: a value never used before. Begins with `Action::Get`.
    pub fn new(lease: CasToken) -> (Self, Action<F>) {
        (Self { state: State::Asked { waits: 0 }, lease }, Action::Get)
    }

    /// The next action after `event`.
    pub fn next(&mut self, event: Event<F>) -> Action<F> {
        let state = std::mem::replace(&mut self.state, State::Reading { under: None });
        match (state, event) {
            (_, Event::Found(Found::Valid(fact, _))) => Action::Done(Answer::Cached(fact)),
            (_, Event::Found(Found::Unknown)) => Action::Done(Answer::Cached(F::unknown())),
            (_, Event::Found(Found::Tombstone(..))) => Action::Done(Answer::Cached(F::refused())),
            (State::Asked { .. }, Event::Found(Found::Nothing)) => {
                self.state = State::AskedForLease(self.lease.clone());
                Action::Lease(self.lease.clone())
            }
            // Nothing was there, so the lease is ours now.
            (State::AskedForLease(lease), Event::Found(Found::Nothing)) => self.read_under(lease),
            (State::Asked { .. } | State::AskedForLease(_), Event::Found(Found::Untrusted(expected))) => {
                self.state = State::TakingOver(self.lease.clone());
                Action::TakeOver { expected, lease: self.lease.clone() }
            }
            (State::TakingOver(lease), Event::Swapped(true)) => self.read_under(lease),
            (State::Asked { waits }, Event::Found(Found::Lease)) => match WAITS.get(waits) {
                Some(wait) => {
                    self.state = State::Waiting { waits: waits + 1 };
                    Action::Wait(*wait)
                }
                None => Action::Read { fills: false },
            },
            (State::AskedForLease(_), Event::Found(Found::Lease)) => {
                self.state = State::Waiting { waits: 1 };
                Action::Wait(WAITS[0])
            }
            (State::Waiting { waits }, Event::Waited) => {
                self.state = State::Asked { waits };
                Action::Get
            }
            (State::Reading { under: Some(lease) }, Event::Read(fact)) => {
                self.state = State::Filling(fact.clone());
                Action::Fill { lease, fact }
            }
            (State::Reading { under: None }, Event::Read(fact)) => Action::Done(Answer::Primary { fact, kept: false }),
            (State::Filling(fact), Event::Swapped(kept)) => Action::Done(Answer::Primary { fact, kept }),
            (State::Filling(fact), Event::RedisFailed) => Action::Done(Answer::Primary { fact, kept: false }),
            // A swap refused, Redis away, or an event out of order: the primary decides, and nothing is filled.
            (_, Event::Swapped(_) | Event::RedisFailed | Event::Waited | Event::Read(_) | Event::Found(_)) => {
                Action::Read { fills: false }
            }
        }
    }

    fn read_under(&mut self, lease: CasToken) -> Action<F> {
        self.state = State::Reading { under: Some(lease) };
        Action::Read { fills: true }
    }
}
