//! Callers that share an answer: a production `SingleFlight` and `Verification`s, with Redis and without.
//!
//! `SingleFlight` cannot be copied, so each state remembers the operations on it since it was last empty and repeats
//! them. The rest is `RedisModel`: a caller that has not joined is a reader after its first GET.

use std::fmt::Arguments;

use super::{
    Model, assert_safe, assert_violated, fingerprint,
    redis_model::RedisModel,
    redis_rules::{KeyState, PRODUCTION, Rules},
};
use crate::core::identity::cache::single_flight::{Follower, Joined, Leader, SingleFlight};
use futures_util::FutureExt;

const KEY: [u8; 16] = [0; 16];

/// An operation of a caller on `SingleFlight`.
#[derive(Clone, Copy, Debug)]
enum Op {
    Join(usize),
    Seal(usize),
    Complete(usize, KeyState),
    Drop(usize),
}

/// A caller's part in a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    None,
    /// It leads an open flight.
    Open,
    /// It leads a sealed flight.
    Sealed,
    /// It leads, and has its answer.
    Completing(KeyState),
    /// It follows this leader. `after`: it began after the revocation had returned.
    Follower {
        leader: usize,
        after: bool,
    },
}

#[derive(Clone, Debug)]
struct FlightModel {
    redis: RedisModel,
    /// Whether leaders seal before they read; otherwise callers may join until the flight completes.
    seals: bool,
    parts: Vec<Part>,
    ops: Vec<Op>,
}

/// The result of an operation.
enum OpResult {
    Leader,
    Follower,
    Sealed(bool),
    /// The followers that were answered; `None`: the leader was dropped without an answer.
    Answered(Vec<(usize, Option<KeyState>)>),
}

/// Applies all operations to a new `SingleFlight`, and returns the result of the last.
fn replay(ops: &[Op], callers: usize) -> Option<OpResult> {
    let flights = SingleFlight::new();
    let mut leaders: Vec<Option<Leader<'_, KeyState>>> = (0..callers).map(|_| None).collect();
    let mut followers: Vec<Option<Follower<KeyState>>> = vec![None; callers];
    let mut result = None;
    for op in ops {
        result = match *op {
            Op::Join(i) => match flights.join(KEY) {
                Joined::Leader(leader) => {
                    leaders[i] = Some(leader);
                    Some(OpResult::Leader)
                }
                Joined::Follower(follower) => {
                    followers[i] = Some(follower);
                    Some(OpResult::Follower)
                }
            },
            Op::Seal(i) => leaders[i].as_mut().map(|leader| OpResult::Sealed(leader.seal().now_or_never().is_some())),
            Op::Complete(i, state) => {
                leaders[i].take().into_iter().for_each(|leader| leader.complete(state));
                Some(OpResult::Answered(answers(&mut followers)))
            }
            Op::Drop(i) => {
                drop(leaders[i].take());
                Some(OpResult::Answered(answers(&mut followers)))
            }
        };
    }
    result
}

fn answers(followers: &mut [Option<Follower<KeyState>>]) -> Vec<(usize, Option<KeyState>)> {
    let mut answered = Vec::new();
    for (i, follower) in followers.iter_mut().enumerate() {
        let answer = follower.clone().and_then(|follower| follower.answer().now_or_never());
        if let Some(answer) = answer {
            answered.push((i, answer));
            *follower = None;
        }
    }
    answered
}

impl FlightModel {
    fn new(rules: &'static Rules, seals: bool) -> Self {
        let parts = vec![Part::None; rules.readers];
        Self { redis: RedisModel::new(rules), seals, parts, ops: Vec::new() }
    }

    /// Returns the state after an operation, and the operation's result.
    fn after(&self, op: Op) -> (Self, Option<OpResult>) {
        let mut next = self.clone();
        next.ops.push(op);
        let result = replay(&next.ops, next.parts.len());
        (next, result)
    }

    fn end(&mut self, leader: usize, result: Option<OpResult>) {
        self.parts[leader] = Part::None;
        let Some(OpResult::Answered(answered)) = result else { return };
        for (i, answer) in answered {
            if let (Part::Follower { after, .. }, Some(state)) = (self.parts[i], answer) {
                self.redis.hand(state, after);
            }
            // A follower without an answer joins again: as a caller that begins now, which can be a violation in more
            // cases.
            self.parts[i] = Part::None;
        }
        if self.parts.iter().all(|part| *part == Part::None) {
            self.ops.clear();
        }
    }

    fn caller_steps(&self, i: usize, next: &mut dyn FnMut(Arguments<'_>, Self)) {
        match (self.parts[i], self.redis.reads(i)) {
            (Part::None, None) => self.reads(i, next),
            (Part::None, Some(after)) => {
                let (mut joined, result) = self.after(Op::Join(i));
                if let Some(OpResult::Leader) = result {
                    joined.parts[i] = Part::Open;
                    return next(format_args!("R{i} opens a flight"), joined);
                }
                let leader = |part: &Part| {
                    if self.seals { *part == Part::Open } else { !matches!(part, Part::None | Part::Follower { .. }) }
                };
                let leader = self.parts.iter().position(leader).unwrap_or(usize::MAX);
                joined.parts[i] = Part::Follower { leader, after };
                joined.redis.leave(i);
                next(format_args!("R{i} joins R{leader}"), joined);
            }
            (Part::Open, _) if !self.seals => {
                let mut unsealed = self.clone();
                unsealed.parts[i] = Part::Sealed;
                next(format_args!("R{i} goes on without a seal"), unsealed);
            }
            (Part::Open, _) => {
                let (mut sealed, result) = self.after(Op::Seal(i));
                if let Some(OpResult::Sealed(true)) = result {
                    sealed.parts[i] = Part::Sealed;
                    next(format_args!("R{i} seals its flight"), sealed);
                }
                self.dropped(i, next);
            }
            (Part::Sealed, _) => {
                self.reads(i, next);
                self.dropped(i, next);
            }
            (Part::Completing(state), _) => {
                let (mut completed, result) = self.after(Op::Complete(i, state));
                completed.end(i, result);
                next(format_args!("R{i} completes its flight with {state:?}"), completed);
                self.dropped(i, next);
            }
            (Part::Follower { .. }, _) => {}
        }
    }

    fn dropped(&self, i: usize, next: &mut dyn FnMut(Arguments<'_>, Self)) {
        let (mut dropped, result) = self.after(Op::Drop(i));
        dropped.redis.leave(i);
        dropped.end(i, result);
        next(format_args!("R{i}'s flight is dropped"), dropped);
    }

    fn reads(&self, i: usize, next: &mut dyn FnMut(Arguments<'_>, Self)) {
        self.redis.reader_steps(i, &mut |name, redis| {
            let answered = redis.answered;
            let mut after = self.clone();
            after.redis = redis;
            after.redis.answered = None;
            if let (Some((_, state)), Part::Sealed) = (answered, self.parts[i]) {
                after.parts[i] = Part::Completing(state);
            }
            next(name, after);
        });
    }
}

impl Model for FlightModel {
    fn steps(&self, next: &mut dyn FnMut(Arguments<'_>, Self)) {
        let mut with_redis = |name: Arguments<'_>, redis: RedisModel| {
            let mut after = self.clone();
            after.redis = redis;
            next(name, after);
        };
        self.redis.revoker_steps(&mut with_redis);
        self.redis.failure_steps(&mut with_redis);
        for i in 0..self.parts.len() {
            self.caller_steps(i, next);
        }
    }

    fn is_violated(&self) -> bool {
        self.redis.is_violated()
    }

    fn fingerprint(&self) -> u128 {
        fingerprint(&(self.redis.all(), &self.parts))
    }
}

#[test]
fn joining_until_the_seal_is_safe_with_and_without_redis() {
    const DOWN: Rules = Rules { readers: 3, down: true, ..PRODUCTION };
    const UP: Rules = Rules { readers: 3, vanishing: false, ..PRODUCTION };
    assert_safe("flights, Redis down, 3 callers", &FlightModel::new(&DOWN, true));
    assert_safe("flights, Redis up, entries vanish, 2 callers", &FlightModel::new(&PRODUCTION, true));
    assert_safe("flights, Redis up, entries stay, 3 callers", &FlightModel::new(&UP, true));
}

#[test]
fn joining_until_completion_accepts_a_revoked_key() {
    const DOWN: Rules = Rules { down: true, ..PRODUCTION };
    assert_violated("joining until completion, Redis down", &FlightModel::new(&DOWN, false));
    assert_violated("joining until completion, Redis up", &FlightModel::new(&PRODUCTION, false));
}
