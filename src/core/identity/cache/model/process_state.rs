//! What a process, Redis and a revoker know between two steps, and the rules of their world.
//!
//! Time passes in ticks of half of what a revocation waits at most, so that every fence is one or two ticks: a little
//! longer than the real one, never shorter. Nothing has to happen within a tick, so a process may sleep at any point.
//! Ages stop counting where they stop mattering, and versions are counted from the present one: finitely many states.

use crate::core::identity::cache::{
    invalidations::Reader,
    l1::{Frozen, Snapshot},
    redis_tier::{BATCH, InvalidationBatch, LogId},
    revoke::SETTLED,
};

/// By the process's clock: it is always now, and what was gets older.
pub const NOW: u64 = 1_000_000;
/// Ticks after which nothing differs any more.
pub const LONG: u8 = 2;
/// Where versions are put back to after each step.
pub const PRESENT: u64 = 10;

/// What may happen, and the guards.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// FLUSHALL, once.
    pub flushall: bool,
    /// As many other revocations as are told at a time, once; or more than the log holds.
    pub burst: bool,
    /// Questions are lost, before or after they were answered, or answered when given up.
    pub losses: bool,
    /// Redis comes back with the key valid, and without what the log was told of it.
    pub old_file: bool,
    pub generation: bool,
    pub epoch: bool,
    pub fence: bool,
    pub fence_before: bool,
    pub fence_after: bool,
    pub fence_from_sending: bool,
    pub snapshot_first: bool,
    pub snapshot_fenced: bool,
    pub waits: bool,
    pub settled: bool,
    /// Judged when it is asked who is behind, not when Redis was told.
    pub settled_then: bool,
    pub birth: bool,
    pub gap: bool,
    /// Who was told as much as is told at a time asks again before it believes anything.
    pub full_batch: bool,
    pub registers: bool,
    /// Registers what was taken in, not what is being answered.
    pub registers_taken: bool,
    pub silent_for: u8,
}

pub const OURS: Rules = Rules {
    flushall: true,
    burst: true,
    losses: false,
    old_file: false,
    generation: true,
    epoch: true,
    fence: true,
    fence_before: true,
    fence_after: true,
    fence_from_sending: true,
    snapshot_first: true,
    snapshot_fenced: true,
    waits: true,
    settled: true,
    settled_then: true,
    birth: true,
    gap: true,
    full_batch: true,
    registers: true,
    registers_taken: true,
    silent_for: LONG,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Whom {
    Ours,
    /// As many others as are told at a time.
    Burst,
}

/// An answer to a question for news, small.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Told {
    pub epoch: u8,
    pub oldest: LogId,
    pub newest: LogId,
    pub entries: Vec<(LogId, Whom)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    None,
    Sent { age: u8 },
    Answered { age: u8, told: Told },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fetch {
    None,
    Sent(Option<Snapshot>),
    Answered(Option<Snapshot>),
}

/// A verification that began after the revocation returned: no other can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verify {
    None,
    Fenced,
    Looked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Revoker {
    Before,
    Told { id: LogId, settled: bool, waited: u8 },
    Returned,
}

#[derive(Clone, Debug, Hash)]
pub struct State {
    /// Whether Redis may answer that the key is valid. Until the revocation it always may: what vanishes is filled again.
    pub valid: bool,
    pub log: Vec<(LogId, Whom)>,
    pub ids: u64,
    /// Which, and its age.
    pub epoch: Option<(u8, u8)>,
    pub epochs: u8,
    pub seen: Option<(LogId, u8)>,
    pub revoker: Revoker,
    pub l1: Frozen,
    pub reader: Reader,
    pub question: Question,
    /// A question given up that Redis will answer yet.
    pub late: Option<LogId>,
    pub fetch: Fetch,
    pub verify: Verify,
    pub flushes: u8,
    pub bursts: u8,
    pub restarts: u8,
    pub accepted: bool,
}

impl State {
    pub fn new(rules: &Rules) -> Self {
        Self {
            valid: true,
            log: Vec::new(),
            ids: 0,
            epoch: Some((0, LONG)),
            epochs: 1,
            seen: None,
            revoker: Revoker::Before,
            l1: Frozen { fence: 0, epoch: PRESENT, generation: PRESENT, kept: None },
            reader: Reader::default(),
            question: Question::None,
            late: None,
            fetch: Fetch::None,
            verify: Verify::None,
            flushes: u8::from(rules.flushall),
            bursts: u8::from(rules.burst),
            restarts: u8::from(rules.old_file),
            accepted: false,
        }
    }

    pub fn the_epoch(&mut self) -> u8 {
        let (epoch, _) = *self.epoch.get_or_insert((self.epochs, 0));
        self.epochs = epoch + 1;
        epoch
    }

    pub fn append(&mut self, whom: Whom) -> LogId {
        self.ids += 1;
        let id = LogId(self.ids, 0);
        self.log.push((id, whom));
        id
    }

    /// Versions are compared for being equal, and only grow: what is not the present one is an old one.
    pub fn put_back(&mut self, after: Frozen) {
        let back = |version: u64, now: u64| if version == now { PRESENT } else { PRESENT - 1 };
        let snapshot = |taken: Snapshot| Snapshot {
            generation: back(taken.generation, after.generation),
            epoch: back(taken.epoch, after.epoch),
        };
        match &mut self.fetch {
            Fetch::Sent(taken) | Fetch::Answered(taken) => *taken = taken.map(snapshot),
            Fetch::None => {}
        }
        self.l1 = Frozen {
            fence: if after.fence <= NOW { 0 } else { after.fence },
            epoch: PRESENT,
            generation: PRESENT,
            kept: after.kept.map(|epoch| back(epoch, after.epoch)),
        };
    }

    pub fn tick(&mut self) {
        let older = |age: &mut u8| *age = (*age + 1).min(LONG);
        if let Some((_, age)) = &mut self.epoch {
            older(age);
        }
        if let Some((_, age)) = &mut self.seen {
            older(age);
        }
        if let Question::Sent { age } | Question::Answered { age, .. } = &mut self.question {
            older(age);
        }
        if let Revoker::Told { waited, .. } = &mut self.revoker {
            older(waited);
        }
        self.put_back(Frozen { fence: self.l1.fence.saturating_sub(ticks(1)), ..self.l1 });
    }
}

impl Told {
    pub fn news(&self) -> InvalidationBatch {
        let mut entries = Vec::new();
        for (id, whom) in &self.entries {
            match whom {
                Whom::Ours => entries.push((*id, [0; 16])),
                Whom::Burst => entries.extend(std::iter::repeat_n((*id, [1; 16]), BATCH)),
            }
        }
        entries.truncate(BATCH);
        InvalidationBatch { epoch: self.epoch.to_string(), oldest: self.oldest, newest: self.newest, entries }
    }
}

pub fn ticks(n: u8) -> u64 {
    u64::from(n) * u64::try_from(SETTLED.as_millis()).unwrap_or(u64::MAX).div_ceil(u64::from(LONG))
}
