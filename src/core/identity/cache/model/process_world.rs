//! A world with one process that keeps the key: a real `L1` and `Reader`, Redis as they see it, one revoker elsewhere.

use std::{cell::RefCell, fmt::Arguments, sync::Arc, time::Duration};

use super::{
    World, fingerprint,
    process_state::{Fetch, LONG, NOW, Question, Revoker, Rules, State, Told, Verify, Whom, ticks},
};
use crate::core::identity::cache::{
    CachedKey,
    l1::{Frozen, L1, Snapshot},
    redis_tier::{BATCH, LogId},
    revoke::all_have_heard,
};
use crate::core::{
    id::{KeyId, TenantId},
    identity::Caller,
};

#[derive(Clone, Debug)]
pub struct Process {
    rules: &'static Rules,
    state: State,
}

thread_local! {
    /// The map that each state is put into for a step.
    static MAP: RefCell<(L1, Arc<CachedKey>)> = RefCell::new((L1::new(), Arc::new(CachedKey {
        hash: [0; 32],
        ver: 1,
        caller: Arc::new(Caller {
            key: KeyId::new(),
            name: String::new(),
            tenant: TenantId::new(),
            scopes: Vec::new(),
            expires_at: None,
            limits: serde_json::Value::Null,
        }),
        filled_at: 0.0,
        took: 0.0,
    })));
}

impl Process {
    pub fn new(rules: &'static Rules) -> Self {
        Self { rules, state: State::new(rules) }
    }

    fn with(&self, change: impl FnOnce(&mut State)) -> Self {
        let mut next = self.clone();
        change(&mut next.state);
        next
    }

    /// A step of the real map.
    fn on_map<R>(&self, state: &mut State, step: impl FnOnce(&mut State, &L1, &Arc<CachedKey>) -> R) -> R {
        MAP.with_borrow(|(map, cached)| {
            map.thaw(state.l1, cached);
            let result = step(state, map, cached);
            let mut after = map.freeze(&cached.name());
            if !self.rules.epoch {
                // A flush voids nothing: what is kept is of whatever epoch it is now.
                after.kept = after.kept.map(|_| after.epoch);
            }
            state.put_back(after);
            result
        })
    }

    fn is_fenced(&self, map: &L1) -> bool {
        !self.rules.fence || map.is_fenced(NOW)
    }

    fn snapshot(&self, state: &mut State) -> Option<Snapshot> {
        self.on_map(state, |_, map, cached| {
            let fence = map.freeze(&cached.name()).fence;
            if !self.rules.snapshot_fenced {
                map.grant(NOW);
            }
            let snapshot = map.snapshot(&cached.name(), NOW);
            map.thaw(Frozen { fence, ..map.freeze(&cached.name()) }, cached);
            snapshot
        })
    }

    /// What the script answers to who has taken in all up to `last`.
    fn answer(&self, state: &mut State, last: Option<LogId>) -> Told {
        let epoch = state.the_epoch();
        let newest = state.log.last().map_or(LogId::default(), |entry| entry.0);
        let mut told = Told { epoch, oldest: LogId::default(), newest, entries: Vec::new() };
        if let Some(last) = last {
            told.oldest = state.log.first().map_or(LogId::default(), |entry| entry.0);
            told.entries = state.log.iter().filter(|entry| entry.0 > last).copied().collect();
            if self.rules.registers {
                state.seen = Some((if self.rules.registers_taken { last } else { newest }, 0));
            }
        }
        told
    }

    fn hear(&self, state: &mut State, age: u8, told: &Told) {
        let mut news = told.news();
        if !self.rules.gap {
            news.oldest = LogId::default();
            news.entries.truncate(BATCH - 1);
        }
        if !self.rules.full_batch {
            news.entries.truncate(BATCH - 1);
        }
        let age = if self.rules.fence_from_sending { age } else { 0 };
        self.on_map(state, |state, map, _| state.reader.take(&news, map, NOW - ticks(age)));
    }

    fn disconnected(&self, state: &mut State) {
        state.question = Question::None;
        self.on_map(state, |state, map, _| state.reader.disconnected(map));
    }

    fn process_steps(&self, next: &mut dyn FnMut(Arguments<'_>, Self)) {
        let state = &self.state;
        match &state.question {
            Question::None => {
                next(format_args!("the process asks"), self.with(|s| s.question = Question::Sent { age: 0 }))
            }
            Question::Sent { age } => {
                let last = state.reader.last();
                let mut answered = state.clone();
                let told = self.answer(&mut answered, last);
                answered.question = Question::Answered { age: *age, told };
                let answered = Self { rules: self.rules, state: answered };
                next(format_args!("Redis answers it (last {last:?})"), answered);
                if self.rules.losses {
                    next(format_args!("the question is lost"), self.with(|s| self.disconnected(s)));
                    // And answered at once, later or never.
                    if let (Some(last), None) = (last, state.late) {
                        let given_up = self.with(|s| {
                            s.late = Some(last);
                            self.disconnected(s);
                        });
                        next(format_args!("the question is given up"), given_up);
                    }
                }
            }
            Question::Answered { age, told } => {
                let heard = self.with(|s| {
                    self.hear(s, *age, told);
                    s.question = Question::None;
                });
                next(format_args!("the process hears {:?}", told.entries), heard);
            }
        }
        if let Some(last) = state.late {
            let answered = self.with(|s| {
                self.answer(s, Some(last));
                s.late = None;
            });
            next(format_args!("Redis answers what was given up"), answered);
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
                let kept = self.with(|s| {
                    let snapshot = if self.rules.snapshot_first { snapshot } else { self.snapshot(s) };
                    self.on_map(s, |_, map, cached| {
                        let snapshot = snapshot.map(|taken| match self.rules.generation {
                            true => taken,
                            false => Snapshot { generation: map.freeze(&cached.name()).generation, ..taken },
                        });
                        if let Some(snapshot) = snapshot {
                            map.insert(snapshot, cached.clone(), NOW);
                        }
                    });
                    s.fetch = Fetch::None;
                });
                let name = if kept.state.l1.kept.is_some() { "the process keeps it" } else { "it is not kept" };
                next(format_args!("{name}"), kept);
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
                    next(format_args!("a verification begins"), self.with(|s| s.verify = Verify::Fenced));
                }
            }
            Verify::None => {}
            Verify::Fenced => {
                let here = self.on_map(&mut after_step, |_, map, cached| map.look(&cached.name()).is_some());
                let name = if here { "it finds the key" } else { "it finds nothing" };
                let verify = if here { Verify::Looked } else { Verify::None };
                next(format_args!("{name}"), self.with(|s| s.verify = verify));
            }
            Verify::Looked => {
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
            next(format_args!("another process asks"), self.with(|s| _ = s.the_epoch()));
        }
        if state.bursts > 0 {
            let told = self.with(|s| {
                s.bursts -= 1;
                s.append(Whom::Burst);
            });
            next(format_args!("many other keys are revoked"), told.clone());
            let last = told.state.log.len() - 1;
            next(format_args!("so many that the log overflows"), told.with(|s| drop(s.log.drain(..last))));
        }
        if state.flushes > 0 {
            let flushed = self.with(|s| {
                s.flushes -= 1;
                (s.epoch, s.seen) = (None, None);
                s.log.clear();
            });
            next(format_args!("FLUSHALL"), flushed);
        }
        if state.restarts > 0 && !state.valid {
            let back = self.with(|s| {
                s.restarts -= 1;
                s.valid = true;
                s.log.retain(|entry| entry.1 != Whom::Ours);
            });
            next(format_args!("Redis restarts with an old file"), back);
        }
    }

    fn is_settled(&self) -> bool {
        !self.rules.settled || self.state.epoch.is_some_and(|(_, age)| age >= LONG || !self.rules.birth)
    }

    fn revoker_steps(&self, next: &mut dyn FnMut(Arguments<'_>, Self)) {
        match self.state.revoker {
            Revoker::Before => {
                let told = self.with(|s| {
                    s.valid = false;
                    let id = s.append(Whom::Ours);
                    s.revoker = Revoker::Told { id, settled: self.rules.settled_then || self.is_settled(), waited: 0 };
                });
                next(format_args!("Redis is told of the revocation"), told);
            }
            Revoker::Told { id, settled, waited } => {
                let settled = if self.rules.settled_then { self.is_settled() } else { settled };
                let listens = self.state.seen.filter(|(_, age)| *age < self.rules.silent_for);
                let behind = settled.then(|| i64::from(listens.is_some_and(|(last, _)| last < id)));
                if all_have_heard(Duration::from_millis(ticks(waited)), behind) || !self.rules.waits {
                    next(format_args!("the revocation returns"), self.with(|s| s.revoker = Revoker::Returned));
                }
            }
            Revoker::Returned => {}
        }
    }
}

impl World for Process {
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
