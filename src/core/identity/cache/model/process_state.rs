//! The state of a process, Redis and a revoker between two steps, and the rules of their model.
//!
//! Time passes in ticks of half of what a revocation waits at most, so that every fence lasts one or two ticks: a
//! little longer than in production, never shorter. No step has to happen within a tick, so a process may sleep at any
//! point. Ages stop growing where they stop mattering, and versions are relative to the current one, which makes the
//! states finitely many.

use crate::core::identity::cache::{
    invalidations::InvalidationReader,
    l1::{L1State, Snapshot},
    propagate::FENCE_EXPIRY_MAX,
    redis_tier::{INVALIDATIONS_MAX, InvalidationBatch, LogId},
};

/// The process's clock in milliseconds. It stands still, and a tick makes everything older instead.
pub const CLOCK_MS: u64 = 1_000_000;
/// Ticks after which a greater age makes no difference.
pub const AGE_MAX: u8 = 2;
/// The number that the current version is set to after each step.
pub const CURRENT: u64 = 10;

/// The failures, and the guards.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// FLUSHALL, once.
    pub flushall: bool,
    /// As many other revocations as one reply holds, once; or more than the log holds.
    pub burst: bool,
    /// Polls are lost, before or after they were answered, or answered after they were given up.
    pub losses: bool,
    /// Redis restarts with the key valid and without its entry in the log.
    pub old_data: bool,
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
    /// That is checked when lagging processes are counted, not when Redis was written.
    pub settled_at_count: bool,
    pub epoch_age: bool,
    pub detects_gap: bool,
    /// A process that got a full batch polls again before it uses what it keeps.
    pub full_batch: bool,
    pub registers: bool,
    /// It registers what it has applied, not what is in the reply.
    pub registers_applied: bool,
    /// Ticks after which a process that has not polled is not waited for.
    pub silent_for: u8,
}

/// The rules of production.
pub const PRODUCTION: Rules = Rules {
    flushall: true,
    burst: true,
    losses: false,
    old_data: false,
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
    settled_at_count: true,
    epoch_age: true,
    detects_gap: true,
    full_batch: true,
    registers: true,
    registers_applied: true,
    silent_for: AGE_MAX,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogEntry {
    /// The revocation of the model's key.
    OurKey,
    /// As many revocations of other keys as one reply holds.
    OtherKeys,
}

/// The reply to a poll, in short form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reply {
    pub epoch: u8,
    pub oldest: LogId,
    pub newest: LogId,
    pub entries: Vec<(LogId, LogEntry)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Poll {
    None,
    Sent { age: u8 },
    Answered { age: u8, reply: Reply },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fetch {
    None,
    Sent(Option<Snapshot>),
    Answered(Option<Snapshot>),
}

/// A verification that began after the revocation had returned. No other can be a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verify {
    None,
    FenceChecked,
    EntryRead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Revoker {
    Before,
    Waiting { id: LogId, settled: bool, waited: u8 },
    Returned,
}

#[derive(Clone, Debug, Hash)]
pub struct State {
    /// Whether Redis may answer that the key is valid. Until the revocation it always may, since a missing entry is
    /// filled again.
    pub valid: bool,
    pub log: Vec<(LogId, LogEntry)>,
    pub ids: u64,
    /// The number of the epoch, and its age.
    pub epoch: Option<(u8, u8)>,
    pub epochs: u8,
    /// What the process has registered, and how long ago.
    pub acked: Option<(LogId, u8)>,
    pub revoker: Revoker,
    pub l1: L1State,
    pub reader: InvalidationReader,
    pub poll: Poll,
    /// A poll that was given up and that Redis will still answer.
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
            epoch: Some((0, AGE_MAX)),
            epochs: 1,
            acked: None,
            revoker: Revoker::Before,
            l1: L1State { fence: 0, epoch: CURRENT, generation: CURRENT, entry_epoch: None },
            reader: InvalidationReader::default(),
            poll: Poll::None,
            late: None,
            fetch: Fetch::None,
            verify: Verify::None,
            flushes: u8::from(rules.flushall),
            bursts: u8::from(rules.burst),
            restarts: u8::from(rules.old_data),
            accepted: false,
        }
    }

    /// Returns the epoch, which a poll sets when it is missing.
    pub fn epoch_or_new(&mut self) -> u8 {
        let (epoch, _) = *self.epoch.get_or_insert((self.epochs, 0));
        self.epochs = epoch + 1;
        epoch
    }

    pub fn append(&mut self, entry: LogEntry) -> LogId {
        self.ids += 1;
        let id = LogId(self.ids, 0);
        self.log.push((id, entry));
        id
    }

    /// Takes over the state of L1 with relative versions. Versions are only compared for equality and only grow, so a
    /// version that is not the current one is an old one.
    pub fn set_l1(&mut self, after: L1State) {
        let relative = |version: u64, current: u64| if version == current { CURRENT } else { CURRENT - 1 };
        let snapshot = |taken: Snapshot| Snapshot {
            generation: relative(taken.generation, after.generation),
            epoch: relative(taken.epoch, after.epoch),
        };
        match &mut self.fetch {
            Fetch::Sent(taken) | Fetch::Answered(taken) => *taken = taken.map(snapshot),
            Fetch::None => {}
        }
        self.l1 = L1State {
            fence: if after.fence <= CLOCK_MS { 0 } else { after.fence },
            epoch: CURRENT,
            generation: CURRENT,
            entry_epoch: after.entry_epoch.map(|epoch| relative(epoch, after.epoch)),
        };
    }

    pub fn tick(&mut self) {
        let older = |age: &mut u8| *age = (*age + 1).min(AGE_MAX);
        if let Some((_, age)) = &mut self.epoch {
            older(age);
        }
        if let Some((_, age)) = &mut self.acked {
            older(age);
        }
        if let Poll::Sent { age } | Poll::Answered { age, .. } = &mut self.poll {
            older(age);
        }
        if let Revoker::Waiting { waited, .. } = &mut self.revoker {
            older(waited);
        }
        self.set_l1(L1State { fence: self.l1.fence.saturating_sub(ticks(1)), ..self.l1 });
    }
}

impl Reply {
    pub fn batch(&self) -> InvalidationBatch {
        let mut entries = Vec::new();
        for (id, entry) in &self.entries {
            match entry {
                LogEntry::OurKey => entries.push((*id, [0; 16])),
                LogEntry::OtherKeys => entries.extend(std::iter::repeat_n((*id, [1; 16]), INVALIDATIONS_MAX)),
            }
        }
        entries.truncate(INVALIDATIONS_MAX);
        InvalidationBatch { epoch: self.epoch.to_string(), oldest: self.oldest, newest: self.newest, entries }
    }
}

/// Returns the milliseconds of `n` ticks.
pub fn ticks(n: u8) -> u64 {
    u64::from(n) * u64::try_from(FENCE_EXPIRY_MAX.as_millis()).unwrap_or(u64::MAX).div_ceil(u64::from(AGE_MAX))
}
