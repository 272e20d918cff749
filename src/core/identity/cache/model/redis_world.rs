//! A world with one Redis entry: readers, each a real `Verification`, one revoker, and all that may happen to them.
//!
//! Time does not exist here: an entry may vanish, a reader pause and a message be late for as long as they like.

use std::hash::Hash;

use super::{
    super::{
        entry::{CasToken, Found},
        verify::{Action, Answer, Event, Verification},
    },
    World, fingerprint,
    redis_rules::{Cell, Fact, Filling, Rules},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Reader {
    verification: Verification<Fact>,
    action: Action<Fact>,
    lease: u8,
    /// Began after the revocation returned.
    after: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Before,
    Between,
    Returned,
}

/// A swap of what has this prefix by that.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Late {
    Lease(u8),
    Swap(CasToken, Cell),
}

#[derive(Clone, Debug)]
pub struct Redis {
    rules: &'static Rules,
    primary: Fact,
    replica: Fact,
    cell: Cell,
    revoker: Stage,
    readers: Vec<Option<Reader>>,
    /// Saw this valid entry; then what it read.
    refresher: Option<(u8, Option<Fact>)>,
    /// One command that its sender has given up.
    late: Option<Late>,
    /// What Redis, or who can write to it, remembers of it.
    copy: Option<Cell>,
    fell_back: bool,
    feed_told: bool,
    accepted: bool,
    /// Who came to which answer last; a note for who looks, no part of the state.
    pub answered: Option<(usize, Fact)>,
}

impl Redis {
    pub fn new(rules: &'static Rules) -> Self {
        Self {
            rules,
            primary: Fact::Active,
            replica: Fact::Active,
            cell: Cell::Nothing,
            revoker: Stage::Before,
            readers: vec![None; rules.readers],
            refresher: None,
            late: None,
            copy: None,
            fell_back: false,
            feed_told: false,
            accepted: false,
            answered: None,
        }
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut next = self.clone();
        change(&mut next);
        next
    }

    /// A nonce that nobody holds: as good as one that was never used.
    fn fresh(&self) -> u8 {
        let held = |nonce: u8| {
            let by = |cell: Cell| matches!(cell, Cell::Lease(n) | Cell::Valid(n) | Cell::Forged(n) if n == nonce);
            let named = |prefix: &CasToken| prefix.0[1] == nonce;
            by(self.cell)
                || self.copy.is_some_and(by)
                || self.refresher.is_some_and(|(n, _)| n == nonce)
                || self.late.as_ref().is_some_and(|late| match late {
                    Late::Lease(n) => *n == nonce,
                    Late::Swap(prefix, cell) => named(prefix) || by(*cell),
                })
                || self.readers.iter().flatten().any(|reader| {
                    reader.lease == nonce
                        || matches!(&reader.action, Action::TakeOver { expected, .. } if named(expected))
                })
        };
        (0..).find(|nonce| !held(*nonce)).expect("few are held")
    }

    /// What the service makes of the entry.
    fn found(&self) -> Found<Fact> {
        match self.cell {
            Cell::Nothing => Found::Nothing,
            Cell::Lease(_) => Found::Lease,
            // Its version is below the feed's.
            Cell::Valid(_) if self.feed_told => Found::Untrusted(prefix(self.cell)),
            Cell::Valid(_) => Found::Valid(Fact::Active, prefix(self.cell)),
            Cell::Tombstone => Found::Tombstone(2, prefix(self.cell)),
            Cell::Forged(_) => Found::Untrusted(prefix(self.cell)),
        }
    }

    fn swap(&mut self, expected: &CasToken, new: Cell) -> bool {
        let done = match self.rules.filling {
            Filling::Compare => self.cell != Cell::Nothing && prefix(self.cell) == *expected,
            Filling::Set => true,
            Filling::SetIfNothing => self.cell == Cell::Nothing,
        };
        if done {
            self.cell = new;
        }
        done
    }

    fn lease(&mut self, nonce: u8) -> Found<Fact> {
        let found = self.found();
        // Who does not compare leaves no lease either.
        if self.cell == Cell::Nothing && self.rules.filling == Filling::Compare {
            self.cell = Cell::Lease(nonce);
        }
        found
    }

    fn entry(&self, fact: Fact) -> Cell {
        if fact == Fact::Active { Cell::Valid(self.fresh()) } else { Cell::Tombstone }
    }

    /// The reader goes on; what is done by itself is done at once.
    fn proceed(&mut self, i: usize, event: Event<Fact>) {
        let Some(reader) = &mut self.readers[i] else { return };
        reader.action = reader.verification.next(event);
        if matches!(reader.action, Action::Wait(_)) {
            reader.action = reader.verification.next(Event::Waited);
        }
        if let Action::Done(Answer::Cached(fact) | Answer::Primary { fact, .. }) = reader.action {
            self.accepted |= reader.after && fact == Fact::Active;
            self.readers[i] = None;
            self.answered = Some((i, fact));
        }
    }

    /// Whether the reader is at it, and began after the revocation returned.
    pub fn reads(&self, i: usize) -> Option<bool> {
        self.readers[i].as_ref().map(|reader| reader.after)
    }

    /// The reader leaves it to another.
    pub fn leave(&mut self, i: usize) {
        self.readers[i] = None;
    }

    /// Somebody was handed this answer.
    pub fn hand(&mut self, fact: Fact, after: bool) {
        self.accepted |= after && fact == Fact::Active;
    }

    fn invalidate(&mut self) {
        self.cell = if self.rules.tombstone { Cell::Tombstone } else { Cell::Nothing };
    }

    pub fn revoker_steps(&self, next: &mut dyn FnMut(std::fmt::Arguments<'_>, Self)) {
        let commit = |to: Stage| {
            self.with(|w| {
                w.primary = Fact::Revoked;
                w.revoker = to;
            })
        };
        match (self.revoker, self.rules.database_first) {
            (Stage::Before, true) => next(format_args!("the revocation commits"), commit(Stage::Between)),
            (Stage::Between, true) => {
                let told = self.with(|w| {
                    w.invalidate();
                    w.revoker = Stage::Returned;
                });
                next(format_args!("Redis is told, the revocation returns"), told);
                if self.rules.lying {
                    next(format_args!("it returns, Redis untold"), self.with(|w| w.revoker = Stage::Returned));
                }
            }
            (Stage::Before, false) => {
                let told = self.with(|w| {
                    w.invalidate();
                    w.revoker = Stage::Between;
                });
                next(format_args!("Redis is told"), told);
            }
            (Stage::Between, false) => {
                next(format_args!("the revocation commits and returns"), commit(Stage::Returned))
            }
            (Stage::Returned, _) => next(format_args!("Redis is told once more"), self.with(Self::invalidate)),
        }
        if self.rules.feed && self.primary == Fact::Revoked && !self.feed_told {
            next(format_args!("the feed tells"), self.with(|w| w.feed_told = true));
        }
    }

    pub fn accident_steps(&self, next: &mut dyn FnMut(std::fmt::Arguments<'_>, Self)) {
        let rules = self.rules;
        if rules.vanishing && self.cell != Cell::Nothing {
            next(format_args!("the entry vanishes"), self.with(|w| w.cell = Cell::Nothing));
        }
        if rules.replica && self.replica != self.primary {
            next(format_args!("the replica catches up"), self.with(|w| w.replica = w.primary));
        }
        if rules.forger {
            next(format_args!("somebody forges an entry"), self.with(|w| w.cell = Cell::Forged(w.fresh())));
        }
        if (rules.falling_back || rules.replanting) && self.copy.is_none() && self.cell != Cell::Nothing {
            next(format_args!("{:?} is copied", self.cell), self.with(|w| w.copy = Some(w.cell)));
        }
        if let (Some(copy), false) = (self.copy, self.fell_back && !rules.replanting) {
            let back = self.with(|w| {
                w.cell = copy;
                w.fell_back = true;
            });
            next(format_args!("Redis is back at {copy:?}"), back);
        }
        if let Some(late) = &self.late {
            let done = self.with(|w| {
                match late {
                    Late::Lease(nonce) => drop(w.lease(*nonce)),
                    Late::Swap(expected, cell) => drop(w.swap(expected, *cell)),
                }
                w.late = None;
            });
            next(format_args!("a command given up is done: {late:?}"), done);
            next(format_args!("it never is"), self.with(|w| w.late = None));
        }
        match self.refresher {
            None if rules.refreshing => {
                if let Cell::Valid(nonce) = self.cell {
                    next(format_args!("a refresh begins"), self.with(|w| w.refresher = Some((nonce, None))));
                }
            }
            Some((nonce, None)) => {
                let read = self.with(|w| w.refresher = Some((nonce, Some(w.primary))));
                next(format_args!("the refresh reads {:?}", self.primary), read);
            }
            Some((nonce, Some(fact))) => {
                let done = self.with(|w| {
                    let entry = w.entry(fact);
                    w.swap(&prefix(Cell::Valid(nonce)), entry);
                    w.refresher = None;
                });
                next(format_args!("the refresh fills {fact:?}"), done);
            }
            None => {}
        }
    }

    pub fn reader_steps(&self, i: usize, next: &mut dyn FnMut(std::fmt::Arguments<'_>, Self)) {
        let Some(reader) = &self.readers[i] else {
            // Beginning and the first GET are one step: whoever began earlier may be wrong in fewer ways.
            let began = self.with(|w| {
                let nonce = w.fresh();
                let (verification, action) = Verification::new(prefix(Cell::Lease(nonce)));
                let after = w.revoker == Stage::Returned && (!w.rules.feed || w.feed_told);
                w.readers[i] = Some(Reader { verification, action, lease: nonce, after });
            });
            if self.rules.failures || self.rules.down {
                next(format_args!("R{i} begins, Redis fails"), began.with(|w| w.proceed(i, Event::RedisFailed)));
            }
            if self.rules.down {
                return;
            }
            return next(
                format_args!("R{i} begins, GET answers {:?}", self.cell),
                began.with(|w| w.proceed(i, Event::Found(w.found()))),
            );
        };
        // What is asked of Redis, and what it does if it is lost on the way.
        let (late, done) = match &reader.action {
            Action::Get => (None, self.with(|w| w.proceed(i, Event::Found(w.found())))),
            Action::Lease(_) => {
                let done = self.with(|w| {
                    let found = w.lease(reader.lease);
                    w.proceed(i, Event::Found(found));
                });
                (Some(Late::Lease(reader.lease)), done)
            }
            Action::TakeOver { expected, .. } => {
                let done = self.with(|w| {
                    let swapped = w.swap(expected, Cell::Lease(reader.lease));
                    w.proceed(i, Event::Swapped(swapped));
                });
                (Some(Late::Swap(expected.clone(), Cell::Lease(reader.lease))), done)
            }
            Action::Fill { lease, fact } => {
                let entry = self.entry(*fact);
                let done = self.with(|w| {
                    let swapped = w.swap(lease, entry);
                    w.proceed(i, Event::Swapped(swapped));
                });
                (Some(Late::Swap(lease.clone(), entry)), done)
            }
            Action::Read { fills } => {
                let read = |fact: Fact| self.with(|w| w.proceed(i, Event::Read(fact)));
                if self.rules.replica && *fills && self.replica != self.primary {
                    next(format_args!("R{i} reads {:?} from the replica", self.replica), read(self.replica));
                }
                if self.rules.failures {
                    next(format_args!("R{i} dies"), self.with(|w| w.readers[i] = None));
                }
                return next(format_args!("R{i} reads {:?}", self.primary), read(self.primary));
            }
            Action::Wait(_) | Action::Done(_) => unreachable!("done at once"),
        };
        // Given up, it is done at once, later or never.
        if self.rules.failures && self.late.is_none() {
            let lost = self.with(|w| {
                w.late = late;
                w.proceed(i, Event::RedisFailed);
            });
            next(format_args!("R{i} gives up {:?}", reader.action), lost);
        }
        next(format_args!("R{i} does {:?} on {:?}", reader.action, self.cell), done);
    }
}

impl World for Redis {
    fn steps(&self, next: &mut dyn FnMut(std::fmt::Arguments<'_>, Self)) {
        self.revoker_steps(next);
        self.accident_steps(next);
        for i in 0..self.readers.len() {
            self.reader_steps(i, next);
        }
    }

    fn is_violated(&self) -> bool {
        self.accepted
    }

    fn fingerprint(&self) -> u128 {
        // Readers are alike: which is which does not matter.
        let mut readers: Vec<u128> = self.readers.iter().map(fingerprint).collect();
        readers.sort_unstable();
        fingerprint(&(readers, self.all_but_readers()))
    }
}

impl Redis {
    /// Where it matters who is who.
    pub fn all(&self) -> impl Hash {
        (&self.readers, self.all_but_readers())
    }

    fn all_but_readers(&self) -> impl Hash {
        (
            (self.primary, self.replica, self.cell, self.revoker, self.accepted),
            (self.refresher, self.late.clone(), self.copy, self.fell_back, self.feed_told),
        )
    }
}

/// Kind and nonce, as in the real values.
fn prefix(cell: Cell) -> CasToken {
    let (kind, nonce) = match cell {
        Cell::Nothing | Cell::Tombstone => (b'T', u8::MAX),
        Cell::Lease(nonce) => (b'L', nonce),
        Cell::Valid(nonce) => (b'V', nonce),
        Cell::Forged(nonce) => (b'F', nonce),
    };
    CasToken(vec![kind, nonce])
}
