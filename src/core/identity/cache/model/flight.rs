//! Callers that share an answer: real `SingleFlight` and real `Verification`s, with Redis and without.
//!
//! `SingleFlight` cannot be copied, so each state remembers what was done to it since it was last empty, and does it anew.
//! Everything else is the world of `redis_world`: a caller that has not boarded is a reader that has looked once.

use std::fmt::Arguments;

use futures_util::FutureExt;
use tokio::sync::watch::Receiver;

use super::{
    World, fingerprint, goes_wrong, is_safe,
    redis_rules::{Fact, OURS, Rules},
    redis_world::Redis,
};
use crate::core::identity::cache::single_flight::{Flight, Seat, SingleFlight, completed};

const KEY: [u8; 16] = [0; 16];

/// Something done to `SingleFlight`, by a caller.
#[derive(Clone, Copy, Debug)]
enum Op {
    Board(usize),
    TakeOff(usize),
    Land(usize, Fact),
    Lose(usize),
}

/// A caller's part as it looks from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    None,
    Boarding,
    Airborne,
    /// Has its answer, and will hand it out.
    Landing(Fact),
    /// Of the flight that this caller boarded first, since the revocation returned or before.
    Follower {
        leader: usize,
        after: bool,
    },
}

#[derive(Clone, Debug)]
struct Sky {
    redis: Redis,
    /// Whether pilots take off before they read; else doors stay open until the landing.
    takes_off: bool,
    parts: Vec<Part>,
    done: Vec<Op>,
}

/// What came of an operation.
enum Came {
    Leader,
    Follower,
    TookOff(bool),
    /// Who heard what; nothing: ask again.
    Heard(Vec<(usize, Option<Fact>)>),
}

/// Does all of it to a new `SingleFlight`; answers what came of the last.
fn replay(ops: &[Op], callers: usize) -> Option<Came> {
    let flights = SingleFlight::new();
    let mut pilots: Vec<Option<Flight<'_, Fact>>> = (0..callers).map(|_| None).collect();
    let mut passengers: Vec<Option<Receiver<Option<Fact>>>> = vec![None; callers];
    let mut came = None;
    for op in ops {
        came = match *op {
            Op::Board(i) => match flights.join(KEY) {
                Seat::Leader(flight) => {
                    pilots[i] = Some(flight);
                    Some(Came::Leader)
                }
                Seat::Follower(follower) => {
                    passengers[i] = Some(follower);
                    Some(Came::Follower)
                }
            },
            Op::TakeOff(i) => pilots[i].as_mut().map(|f| Came::TookOff(f.seal().now_or_never().is_some())),
            Op::Land(i, fact) => {
                pilots[i].take().into_iter().for_each(|flight| flight.complete(fact));
                Some(Came::Heard(hear(&mut passengers)))
            }
            Op::Lose(i) => {
                drop(pilots[i].take());
                Some(Came::Heard(hear(&mut passengers)))
            }
        };
    }
    came
}

fn hear(passengers: &mut [Option<Receiver<Option<Fact>>>]) -> Vec<(usize, Option<Fact>)> {
    let mut heard = Vec::new();
    for (i, seat) in passengers.iter_mut().enumerate() {
        let answer = seat.clone().and_then(|follower| completed(follower).now_or_never());
        if let Some(answer) = answer {
            heard.push((i, answer));
            *seat = None;
        }
    }
    heard
}

impl Sky {
    fn new(rules: &'static Rules, takes_off: bool) -> Self {
        let parts = vec![Part::None; rules.readers];
        Self { redis: Redis::new(rules), takes_off, parts, done: Vec::new() }
    }

    /// The same with this done to `SingleFlight`, and what came of it.
    fn after(&self, op: Op) -> (Self, Option<Came>) {
        let mut next = self.clone();
        next.done.push(op);
        let came = replay(&next.done, next.parts.len());
        (next, came)
    }

    fn completed(&mut self, leader: usize, heard: Option<Came>) {
        self.parts[leader] = Part::None;
        let Some(Came::Heard(heard)) = heard else { return };
        for (i, answer) in heard {
            if let (Part::Follower { after, .. }, Some(fact)) = (self.parts[i], answer) {
                self.redis.hand(fact, after);
            }
            // Who heard nothing asks again: as one that begins now, which may be wrong in more ways.
            self.parts[i] = Part::None;
        }
        if self.parts.iter().all(|part| *part == Part::None) {
            self.done.clear();
        }
    }

    fn caller_steps(&self, i: usize, next: &mut dyn FnMut(Arguments<'_>, Self)) {
        match (self.parts[i], self.redis.reads(i)) {
            (Part::None, None) => self.reads(i, next),
            (Part::None, Some(after)) => {
                let (mut boarded, came) = self.after(Op::Board(i));
                if let Some(Came::Leader) = came {
                    boarded.parts[i] = Part::Boarding;
                    return next(format_args!("R{i} opens a flight"), boarded);
                }
                let leader = |part: &Part| {
                    if self.takes_off {
                        *part == Part::Boarding
                    } else {
                        !matches!(part, Part::None | Part::Follower { .. })
                    }
                };
                let leader = self.parts.iter().position(leader).unwrap_or(usize::MAX);
                boarded.parts[i] = Part::Follower { leader, after };
                boarded.redis.leave(i);
                next(format_args!("R{i} joins R{leader}"), boarded);
            }
            (Part::Boarding, _) if !self.takes_off => {
                let mut flying = self.clone();
                flying.parts[i] = Part::Airborne;
                next(format_args!("R{i} goes on, doors open"), flying);
            }
            (Part::Boarding, _) => {
                let (mut flying, came) = self.after(Op::TakeOff(i));
                if let Some(Came::TookOff(true)) = came {
                    flying.parts[i] = Part::Airborne;
                    next(format_args!("R{i} takes off"), flying);
                }
                self.lost(i, next);
            }
            (Part::Airborne, _) => {
                self.reads(i, next);
                self.lost(i, next);
            }
            (Part::Landing(fact), _) => {
                let (mut down, came) = self.after(Op::Land(i, fact));
                down.completed(i, came);
                next(format_args!("R{i} lands with {fact:?}"), down);
                self.lost(i, next);
            }
            (Part::Follower { .. }, _) => {}
        }
    }

    fn lost(&self, i: usize, next: &mut dyn FnMut(Arguments<'_>, Self)) {
        let (mut lost, came) = self.after(Op::Lose(i));
        lost.redis.leave(i);
        lost.completed(i, came);
        next(format_args!("R{i}'s flight is lost"), lost);
    }

    fn reads(&self, i: usize, next: &mut dyn FnMut(Arguments<'_>, Self)) {
        self.redis.reader_steps(i, &mut |name, redis| {
            let answered = redis.answered;
            let mut went = self.clone();
            went.redis = redis;
            went.redis.answered = None;
            if let (Some((_, fact)), Part::Airborne) = (answered, self.parts[i]) {
                went.parts[i] = Part::Landing(fact);
            }
            next(name, went);
        });
    }
}

impl World for Sky {
    fn steps(&self, next: &mut dyn FnMut(Arguments<'_>, Self)) {
        let mut around = |name: Arguments<'_>, redis: Redis| {
            let mut went = self.clone();
            went.redis = redis;
            next(name, went);
        };
        self.redis.revoker_steps(&mut around);
        self.redis.accident_steps(&mut around);
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
fn boarding_before_take_off_is_safe_with_redis_and_without() {
    const DOWN: Rules = Rules { readers: 3, down: true, ..OURS };
    const UP: Rules = Rules { readers: 3, vanishing: false, ..OURS };
    is_safe("flights, Redis down, 3 callers", &Sky::new(&DOWN, true));
    is_safe("flights, Redis up, entries vanish, 2 callers", &Sky::new(&OURS, true));
    is_safe("flights, Redis up, entries stay, 3 callers", &Sky::new(&UP, true));
}

#[test]
fn joining_until_the_landing_is_wrong_with_redis_and_without() {
    const DOWN: Rules = Rules { down: true, ..OURS };
    goes_wrong("joining until the landing, Redis down", &Sky::new(&DOWN, false));
    goes_wrong("joining until the landing, Redis up", &Sky::new(&OURS, false));
}
