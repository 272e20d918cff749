//! A model with one Redis entry: readers, each a production `Verification`, one revoker, and the failures of the rules.
//!
//! There is no time in it: an entry may vanish, a reader pause and a command be late for as long as they like.

use std::hash::Hash;

use super::{
    super::{
        entry::{CasToken, Entry},
        verify::{Action, Answer, Event, Verification},
    },
    Model, fingerprint,
    redis_rules::{FillRule, KeyState, Rules, StoredValue},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Reader {
    verification: Verification<KeyState>,
    action: Action<KeyState>,
    lease: u8,
    /// It began after the revocation had returned.
    after: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Before,
    Between,
    Returned,
}

/// A command that its sender has given up and Redis executes later. `Swap`: from the value with this token to that
/// value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum LateCommand {
    Lease(u8),
    Swap(CasToken, StoredValue),
}

#[derive(Clone, Debug)]
pub struct RedisModel {
    rules: &'static Rules,
    primary: KeyState,
    replica: KeyState,
    value: StoredValue,
    revoker: Stage,
    readers: Vec<Option<Reader>>,
    /// The nonce of the valid entry that is being refreshed, then what the refresh read.
    refresher: Option<(u8, Option<KeyState>)>,
    late: Option<LateCommand>,
    /// An older value, which Redis or an attacker may put back.
    copy: Option<StoredValue>,
    fell_back: bool,
    feed_read: bool,
    accepted: bool,
    /// Which reader got which answer in the last step; not a part of the state.
    pub answered: Option<(usize, KeyState)>,
}

impl RedisModel {
    pub fn new(rules: &'static Rules) -> Self {
        Self {
            rules,
            primary: KeyState::Active,
            replica: KeyState::Active,
            value: StoredValue::Missing,
            revoker: Stage::Before,
            readers: vec![None; rules.readers],
            refresher: None,
            late: None,
            copy: None,
            fell_back: false,
            feed_read: false,
            accepted: false,
            answered: None,
        }
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut next = self.clone();
        change(&mut next);
        next
    }

    /// Returns a nonce that is in use nowhere, which is as good as one that was never used.
    fn fresh(&self) -> u8 {
        let is_used = |nonce: u8| {
            let is_value = |value: StoredValue| match value {
                StoredValue::Lease(n) | StoredValue::Valid(n) | StoredValue::Forged(n) => n == nonce,
                StoredValue::Missing | StoredValue::Tombstone => false,
            };
            let is_token = |token: &CasToken| token.0[1] == nonce;
            is_value(self.value)
                || self.copy.is_some_and(is_value)
                || self.refresher.is_some_and(|(n, _)| n == nonce)
                || self.late.as_ref().is_some_and(|late| match late {
                    LateCommand::Lease(n) => *n == nonce,
                    LateCommand::Swap(token, value) => is_token(token) || is_value(*value),
                })
                || self.readers.iter().flatten().any(|reader| {
                    reader.lease == nonce
                        || matches!(&reader.action, Action::TakeOver { expected, .. } if is_token(expected))
                })
        };
        (0..).find(|nonce| !is_used(*nonce)).expect("few nonces are in use")
    }

    /// Returns the value as a verification sees it.
    fn entry(&self) -> Entry<KeyState> {
        match self.value {
            StoredValue::Missing => Entry::Missing,
            StoredValue::Lease(_) => Entry::Lease,
            // Its version is lower than that in the feed.
            StoredValue::Valid(_) if self.feed_read => Entry::Untrusted(token(self.value)),
            StoredValue::Valid(_) => Entry::Valid(KeyState::Active, token(self.value)),
            StoredValue::Tombstone => Entry::Tombstone(2, token(self.value)),
            StoredValue::Forged(_) => Entry::Untrusted(token(self.value)),
        }
    }

    fn swap(&mut self, expected: &CasToken, new: StoredValue) -> bool {
        let done = match self.rules.fill {
            FillRule::Compare => self.value != StoredValue::Missing && token(self.value) == *expected,
            FillRule::Set => true,
            FillRule::SetIfMissing => self.value == StoredValue::Missing,
        };
        if done {
            self.value = new;
        }
        done
    }

    fn lease(&mut self, nonce: u8) -> Entry<KeyState> {
        let entry = self.entry();
        // A protocol that does not compare has no leases.
        if self.value == StoredValue::Missing && self.rules.fill == FillRule::Compare {
            self.value = StoredValue::Lease(nonce);
        }
        entry
    }

    fn value(&self, state: KeyState) -> StoredValue {
        if state == KeyState::Active { StoredValue::Valid(self.fresh()) } else { StoredValue::Tombstone }
    }

    /// Gives the event to the reader. Waiting and finishing happen in the same step.
    fn proceed(&mut self, i: usize, event: Event<KeyState>) {
        let Some(reader) = &mut self.readers[i] else { return };
        reader.action = reader.verification.next(event);
        if matches!(reader.action, Action::Wait(_)) {
            reader.action = reader.verification.next(Event::Waited);
        }
        if let Action::Done(Answer::Cached(state) | Answer::Primary { lookup: state, .. }) = reader.action {
            self.accepted |= reader.after && state == KeyState::Active;
            self.readers[i] = None;
            self.answered = Some((i, state));
        }
    }

    /// Returns whether the reader began after the revocation had returned; `None` when it is idle.
    pub fn reads(&self, i: usize) -> Option<bool> {
        self.readers[i].as_ref().map(|reader| reader.after)
    }

    /// Ends the reader's verification without an answer.
    pub fn leave(&mut self, i: usize) {
        self.readers[i] = None;
    }

    /// Records that a follower got this answer.
    pub fn hand(&mut self, state: KeyState, after: bool) {
        self.accepted |= after && state == KeyState::Active;
    }

    fn invalidate(&mut self) {
        self.value = if self.rules.tombstone { StoredValue::Tombstone } else { StoredValue::Missing };
    }

    pub fn revoker_steps(&self, next: &mut dyn FnMut(std::fmt::Arguments<'_>, Self)) {
        let commit = |to: Stage| {
            self.with(|w| {
                w.primary = KeyState::Revoked;
                w.revoker = to;
            })
        };
        match (self.revoker, self.rules.database_first) {
            (Stage::Before, true) => next(format_args!("the revocation commits"), commit(Stage::Between)),
            (Stage::Between, true) => {
                let returned = self.with(|w| {
                    w.invalidate();
                    w.revoker = Stage::Returned;
                });
                next(format_args!("Redis is written, the revocation returns"), returned);
                if self.rules.lying {
                    next(format_args!("it returns, Redis is not written"), self.with(|w| w.revoker = Stage::Returned));
                }
            }
            (Stage::Before, false) => {
                let written = self.with(|w| {
                    w.invalidate();
                    w.revoker = Stage::Between;
                });
                next(format_args!("Redis is written"), written);
            }
            (Stage::Between, false) => {
                next(format_args!("the revocation commits and returns"), commit(Stage::Returned))
            }
            (Stage::Returned, _) => next(format_args!("Redis is written once more"), self.with(Self::invalidate)),
        }
        if self.rules.feed && self.primary == KeyState::Revoked && !self.feed_read {
            next(format_args!("the feed is read"), self.with(|w| w.feed_read = true));
        }
    }

    pub fn failure_steps(&self, next: &mut dyn FnMut(std::fmt::Arguments<'_>, Self)) {
        let rules = self.rules;
        if rules.vanishing && self.value != StoredValue::Missing {
            next(format_args!("the entry vanishes"), self.with(|w| w.value = StoredValue::Missing));
        }
        if rules.replica && self.replica != self.primary {
            next(format_args!("the replica catches up"), self.with(|w| w.replica = w.primary));
        }
        if rules.forger {
            next(format_args!("an entry is forged"), self.with(|w| w.value = StoredValue::Forged(w.fresh())));
        }
        if (rules.falling_back || rules.replanting) && self.copy.is_none() && self.value != StoredValue::Missing {
            next(format_args!("{:?} is copied", self.value), self.with(|w| w.copy = Some(w.value)));
        }
        if let (Some(copy), false) = (self.copy, self.fell_back && !rules.replanting) {
            let back = self.with(|w| {
                w.value = copy;
                w.fell_back = true;
            });
            next(format_args!("{copy:?} is put back"), back);
        }
        if let Some(late) = &self.late {
            let done = self.with(|w| {
                match late {
                    LateCommand::Lease(nonce) => drop(w.lease(*nonce)),
                    LateCommand::Swap(expected, value) => drop(w.swap(expected, *value)),
                }
                w.late = None;
            });
            next(format_args!("a command given up is executed: {late:?}"), done);
            next(format_args!("it is lost"), self.with(|w| w.late = None));
        }
        match self.refresher {
            None if rules.refreshing => {
                if let StoredValue::Valid(nonce) = self.value {
                    next(format_args!("a refresh begins"), self.with(|w| w.refresher = Some((nonce, None))));
                }
            }
            Some((nonce, None)) => {
                let read = self.with(|w| w.refresher = Some((nonce, Some(w.primary))));
                next(format_args!("the refresh reads {:?}", self.primary), read);
            }
            Some((nonce, Some(state))) => {
                let done = self.with(|w| {
                    let entry = w.value(state);
                    w.swap(&token(StoredValue::Valid(nonce)), entry);
                    w.refresher = None;
                });
                next(format_args!("the refresh fills {state:?}"), done);
            }
            None => {}
        }
    }

    pub fn reader_steps(&self, i: usize, next: &mut dyn FnMut(std::fmt::Arguments<'_>, Self)) {
        let Some(reader) = &self.readers[i] else {
            // Beginning and the first GET are one step: a reader that began earlier may accept in more cases.
            let began = self.with(|w| {
                let nonce = w.fresh();
                let (verification, action) = Verification::new(token(StoredValue::Lease(nonce)));
                let after = w.revoker == Stage::Returned && (!w.rules.feed || w.feed_read);
                w.readers[i] = Some(Reader { verification, action, lease: nonce, after });
            });
            if self.rules.failures || self.rules.down {
                next(format_args!("R{i} begins, Redis fails"), began.with(|w| w.proceed(i, Event::RedisFailed)));
            }
            if self.rules.down {
                return;
            }
            return next(
                format_args!("R{i} begins, GET answers {:?}", self.value),
                began.with(|w| w.proceed(i, Event::Entry(w.entry()))),
            );
        };
        // The command that the action sends, and the result of executing it.
        let (late, done) = match &reader.action {
            Action::Get => (None, self.with(|w| w.proceed(i, Event::Entry(w.entry())))),
            Action::AcquireLease(_) => {
                let done = self.with(|w| {
                    let entry = w.lease(reader.lease);
                    w.proceed(i, Event::Entry(entry));
                });
                (Some(LateCommand::Lease(reader.lease)), done)
            }
            Action::TakeOver { expected, .. } => {
                let done = self.with(|w| {
                    let swapped = w.swap(expected, StoredValue::Lease(reader.lease));
                    w.proceed(i, Event::Swapped(swapped));
                });
                (Some(LateCommand::Swap(expected.clone(), StoredValue::Lease(reader.lease))), done)
            }
            Action::Fill { lease, lookup } => {
                let entry = self.value(*lookup);
                let done = self.with(|w| {
                    let swapped = w.swap(lease, entry);
                    w.proceed(i, Event::Swapped(swapped));
                });
                (Some(LateCommand::Swap(lease.clone(), entry)), done)
            }
            Action::ReadPrimary { fills } => {
                let read = |state: KeyState| self.with(|w| w.proceed(i, Event::Read(state)));
                if self.rules.replica && *fills && self.replica != self.primary {
                    next(format_args!("R{i} reads {:?} from the replica", self.replica), read(self.replica));
                }
                if self.rules.failures {
                    next(format_args!("R{i} dies"), self.with(|w| w.readers[i] = None));
                }
                return next(format_args!("R{i} reads {:?}", self.primary), read(self.primary));
            }
            Action::Wait(_) | Action::Done(_) => unreachable!("part of another step"),
        };
        // A command that is given up is executed at once, later or never.
        if self.rules.failures && self.late.is_none() {
            let lost = self.with(|w| {
                w.late = late;
                w.proceed(i, Event::RedisFailed);
            });
            next(format_args!("R{i} gives up {:?}", reader.action), lost);
        }
        next(format_args!("R{i} does {:?} on {:?}", reader.action, self.value), done);
    }
}

impl Model for RedisModel {
    fn steps(&self, next: &mut dyn FnMut(std::fmt::Arguments<'_>, Self)) {
        self.revoker_steps(next);
        self.failure_steps(next);
        for i in 0..self.readers.len() {
            self.reader_steps(i, next);
        }
    }

    fn is_violated(&self) -> bool {
        self.accepted
    }

    fn fingerprint(&self) -> u128 {
        // Readers are interchangeable.
        let mut readers: Vec<u128> = self.readers.iter().map(fingerprint).collect();
        readers.sort_unstable();
        fingerprint(&(readers, self.all_but_readers()))
    }
}

impl RedisModel {
    /// Returns the state for models in which readers are not interchangeable.
    pub fn all(&self) -> impl Hash {
        (&self.readers, self.all_but_readers())
    }

    fn all_but_readers(&self) -> impl Hash {
        (
            (self.primary, self.replica, self.value, self.revoker, self.accepted),
            (self.refresher, self.late.clone(), self.copy, self.fell_back, self.feed_read),
        )
    }
}

/// Returns kind and nonce, as in production.
fn token(value: StoredValue) -> CasToken {
    let (kind, nonce) = match value {
        StoredValue::Missing | StoredValue::Tombstone => (b'T', u8::MAX),
        StoredValue::Lease(nonce) => (b'L', nonce),
        StoredValue::Valid(nonce) => (b'V', nonce),
        StoredValue::Forged(nonce) => (b'F', nonce),
    };
    CasToken(vec![kind, nonce])
}
