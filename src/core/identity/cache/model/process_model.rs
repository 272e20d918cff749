//! A model with one process that keeps the key: a production `L1` and `InvalidationReader`, Redis as they see it, and
//! one revoker in another process.

use std::{cell::RefCell, fmt::Arguments, sync::Arc, time::Duration};

use super::{
    Model, fingerprint,
    process_state::{AGE_MAX, CLOCK_MS, Fetch, LogEntry, Poll, Reply, Revoker, Rules, State, Verify, ticks},
};
use crate::core::identity::cache::{
    CachedKey,
    l1::{L1, L1State, Snapshot},
    propagate::is_in_force,
    redis_tier::{INVALIDATIONS_MAX, LogId},
};
use crate::core::{
    id::{KeyId, TenantId},
    identity::{Caller, KeyLimits},
};

#[derive(Clone, Debug)]
pub struct ProcessModel {
    rules: &'static Rules,
    state: State,
}

thread_local! {
    /// The map that takes over the state before each step.
    static MAP: RefCell<(L1, Arc<CachedKey>)> = RefCell::new((L1::new(), Arc::new(CachedKey {
        hash: [0; 32],
        ver: 1,
        caller: Arc::new(Caller {
            key: KeyId::new(),
            name: String::new(),
            tenant: TenantId::new(),
            scopes: Vec::new(),
            expires_at: None,
            limits: KeyLimits::GENERAL,
        }),
        filled_at: 0.0,
        read_seconds: 0.0,
    })));
}

impl ProcessModel {
    pub fn new(rules: &'static Rules) -> Self {
        Self { rules, state: State::new(rules) }
    }

    fn with(&self, change: impl FnOnce(&mut State)) -> Self {
        let mut next = self.clone();
        change(&mut next.state);
        next
    }

    /// Runs a step of the production map.
    fn on_map<R>(&self, state: &mut State, step: impl FnOnce(&mut State, &L1, &Arc<CachedKey>) -> R) -> R {
        MAP.with_borrow(|(map, cached)| {
            map.restore(state.l1, cached);
            let result = step(state, map, cached);
            let mut after = map.save(&cached.short_hash());
            if !self.rules.epoch {
                // A flush voids nothing: the entry is of the current epoch, whatever that is.
                after.entry_epoch = after.entry_epoch.map(|_| after.epoch);
            }
            state.set_l1(after);
            result
        })
    }

    fn is_fenced(&self, map: &L1) -> bool {
        !self.rules.fence || map.is_fenced(CLOCK_MS)
    }

    fn snapshot(&self, state: &mut State) -> Option<Snapshot> {
        self.on_map(state, |_, map, cached| {
            let fence = map.save(&cached.short_hash()).fence;
            if !self.rules.snapshot_fenced {
                map.extend_fence(CLOCK_MS);
            }
            let snapshot = map.snapshot(&cached.short_hash(), CLOCK_MS);
            map.restore(L1State { fence, ..map.save(&cached.short_hash()) }, cached);
            snapshot
        })
    }

    /// Returns what the script answers to a process that has applied all up to `last`.
    fn answer(&self, state: &mut State, last: Option<LogId>) -> Reply {
        let epoch = state.epoch_or_new();
        let newest = state.log.last().map_or(LogId::default(), |entry| entry.0);
        let mut reply = Reply { epoch, oldest: LogId::default(), newest, entries: Vec::new() };
        if let Some(last) = last {
            reply.oldest = state.log.first().map_or(LogId::default(), |entry| entry.0);
            reply.entries = state.log.iter().filter(|entry| entry.0 > last).copied().collect();
            if self.rules.registers {
                state.acked = Some((if self.rules.registers_applied { last } else { newest }, 0));
            }
        }
        reply
    }

    fn apply(&self, state: &mut State, age: u8, reply: &Reply) {
        let mut batch = reply.batch();
        if !self.rules.detects_gap {
            batch.oldest = LogId::default();
            batch.entries.truncate(INVALIDATIONS_MAX - 1);
        }
        if !self.rules.full_batch {
            batch.entries.truncate(INVALIDATIONS_MAX - 1);
        }
        let age = if self.rules.fence_from_sending { age } else { 0 };
        self.on_map(state, |state, map, _| state.reader.apply(&batch, map, CLOCK_MS - ticks(age)));
    }

    fn disconnected(&self, state: &mut State) {
        state.poll = Poll::None;
        self.on_map(state, |state, map, _| state.reader.disconnected(map));
    }

    fn process_steps(&self, next: &mut dyn FnMut(Arguments<'_>, Self)) {
        let state = &self.state;
        match &state.poll {
            Poll::None => next(format_args!("the process polls"), self.with(|s| s.poll = Poll::Sent { age: 0 })),
            Poll::Sent { age } => {
                let last = state.reader.last();
                let mut answered = state.clone();
                let reply = self.answer(&mut answered, last);
                answered.poll = Poll::Answered { age: *age, reply };
                let answered = Self { rules: self.rules, state: answered };
                next(format_args!("Redis answers it (last {last:?})"), answered);
                if self.rules.losses {
                    next(format_args!("the poll is lost"), self.with(|s| self.disconnected(s)));
                    // A poll that is given up is answered at once, later or never.
                    if let (Some(last), None) = (last, state.late) {
                        let given_up = self.with(|s| {
                            s.late = Some(last);
                            self.disconnected(s);
                        });
                        next(format_args!("the poll is given up"), given_up);
                    }
                }
            }
            Poll::Answered { age, reply } => {
                let applied = self.with(|s| {
                    self.apply(s, *age, reply);
                    s.poll = Poll::None;
                });
                next(format_args!("the process applies {:?}", reply.entries), applied);
            }
        }
        if let Some(last) = state.late {
            let answered = self.with(|s| {
                self.answer(s, Some(last));
                s.late = None;
            });
            next(format_args!("Redis answers the poll that was given up"), answered);
        }
        self.fetch_steps(next);
        self.verify_steps(next);
    }

    fn fetch_steps(&self, next: &mut dyn FnMut(Arguments<'_>, Self)) {
        match self.state.fetch {
            Fetch::None => {
                let sent = self.with(|s| s.fetch = Fetch::Sent(self.snapshot(s)));
                if sent.state.fetch != Fetch::Sent(None) {
                    next(format_args!("the process sends GET"), sent);
                }
            }
            Fetch::Sent(snapshot) => {
                let valid = self.state.valid;
                let fetch = if valid { Fetch::Answered(snapshot) } else { Fetch::None };
                let name = if valid { "Redis answers GET: valid" } else { "Redis answers GET: not valid" };
                next(format_args!("{name}"), self.with(|s| s.fetch = fetch));
            }
            Fetch::Answered(snapshot) => {
                let inserted = self.with(|s| {
                    let snapshot = if self.rules.snapshot_first { snapshot } else { self.snapshot(s) };
                    self.on_map(s, |_, map, cached| {
                        let snapshot = snapshot.map(|taken| match self.rules.generation {
                            true => taken,
                            false => Snapshot { generation: map.save(&cached.short_hash()).generation, ..taken },
                        });
                        if let Some(snapshot) = snapshot {
                            map.insert(snapshot, cached.clone(), CLOCK_MS);
                        }
                    });
                    s.fetch = Fetch::None;
                });
                let is_inserted = inserted.state.l1.entry_epoch.is_some();
                let name = if is_inserted { "the process inserts it" } else { "it is not inserted" };
                next(format_args!("{name}"), inserted);
            }
        }
    }

    /// The three parts of `L1::get`.
    fn verify_steps(&self, next: &mut dyn FnMut(Arguments<'_>, Self)) {
        let mut after_step = self.state.clone();
        match self.state.verify {
            Verify::None if self.state.revoker == Revoker::Returned => {
                let fenced = self.on_map(&mut after_step, |_, map, _| self.is_fenced(map));
                if fenced || !self.rules.fence_before {
                    next(format_args!("a verification begins"), self.with(|s| s.verify = Verify::FenceChecked));
                }
            }
            Verify::None => {}
            Verify::FenceChecked => {
                let found =
                    self.on_map(&mut after_step, |_, map, cached| map.get_unfenced(&cached.short_hash()).is_some());
                let name = if found { "it finds the key" } else { "it finds nothing" };
                let verify = if found { Verify::EntryRead } else { Verify::None };
                next(format_args!("{name}"), self.with(|s| s.verify = verify));
            }
            Verify::EntryRead => {
                let fenced = self.on_map(&mut after_step, |_, map, _| self.is_fenced(map));
                let accepts = fenced || !self.rules.fence_after;
                let done = self.with(|s| {
                    s.verify = Verify::None;
                    s.accepted = accepts;
                });
                next(format_args!("it accepts: {accepts}"), done);
            }
        }
    }

    fn redis_steps(&self, next: &mut dyn FnMut(Arguments<'_>, Self)) {
        let state = &self.state;
        if state.epoch.is_none() {
            next(format_args!("another process polls"), self.with(|s| _ = s.epoch_or_new()));
        }
        if state.bursts > 0 {
            let revoked = self.with(|s| {
                s.bursts -= 1;
                s.append(LogEntry::OtherKeys);
            });
            next(format_args!("many other keys are revoked"), revoked.clone());
            let last = revoked.state.log.len() - 1;
            next(format_args!("so many that the log overflows"), revoked.with(|s| drop(s.log.drain(..last))));
        }
        if state.flushes > 0 {
            let flushed = self.with(|s| {
                s.flushes -= 1;
                (s.epoch, s.acked) = (None, None);
                s.log.clear();
            });
            next(format_args!("FLUSHALL"), flushed);
        }
        if state.restarts > 0 && !state.valid {
            let back = self.with(|s| {
                s.restarts -= 1;
                s.valid = true;
                s.log.retain(|entry| entry.1 != LogEntry::OurKey);
            });
            next(format_args!("Redis restarts with old data"), back);
        }
    }

    fn is_settled(&self) -> bool {
        !self.rules.settled || self.state.epoch.is_some_and(|(_, age)| age >= AGE_MAX || !self.rules.epoch_age)
    }

    fn revoker_steps(&self, next: &mut dyn FnMut(Arguments<'_>, Self)) {
        match self.state.revoker {
            Revoker::Before => {
                let written = self.with(|s| {
                    s.valid = false;
                    let id = s.append(LogEntry::OurKey);
                    let settled = self.rules.settled_at_count || self.is_settled();
                    s.revoker = Revoker::Waiting { id, settled, waited: 0 };
                });
                next(format_args!("the revocation is written to Redis"), written);
            }
            Revoker::Waiting { id, settled, waited } => {
                let settled = if self.rules.settled_at_count { self.is_settled() } else { settled };
                let registered = self.state.acked.filter(|(_, age)| *age < self.rules.silent_for);
                let lagging = settled.then(|| i64::from(registered.is_some_and(|(last, _)| last < id)));
                if is_in_force(Duration::from_millis(ticks(waited)), lagging) || !self.rules.waits {
                    next(format_args!("the revocation returns"), self.with(|s| s.revoker = Revoker::Returned));
                }
            }
            Revoker::Returned => {}
        }
    }
}

impl Model for ProcessModel {
    fn steps(&self, next: &mut dyn FnMut(Arguments<'_>, Self)) {
        next(format_args!("half a second passes"), self.with(State::tick));
        self.process_steps(next);
        self.redis_steps(next);
        self.revoker_steps(next);
    }

    fn is_violated(&self) -> bool {
        self.state.accepted
    }

    fn fingerprint(&self) -> u128 {
        fingerprint(&self.state)
    }
}
