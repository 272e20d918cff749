//! The protocol under every interleaving: small worlds around the real decision code, explored state by state.
//!
//! `redis` steps `Verification` against one Redis entry, `flight` steps `SingleFlight`, `process` steps `L1` and `Reader`. Each
//! world is run with all guards, where nothing may go wrong, and with each guard taken away, where something must: a
//! model that finds nothing in a broken protocol would prove nothing of a sound one.

mod flight;
mod process;
mod process_state;
mod process_world;
mod redis;
mod redis_rules;
mod redis_world;

use std::{
    collections::{HashSet, VecDeque},
    fmt::Arguments,
    hash::{DefaultHasher, Hash, Hasher},
};

/// Something that can be in finitely many states.
trait World: Clone {
    /// Hands each possible next step, with its name, to `next`.
    fn steps(&self, next: &mut dyn FnMut(Arguments<'_>, Self));

    /// Whether a revoked key was accepted that must not have been.
    fn is_violated(&self) -> bool;

    /// The same for states that differ in names only.
    fn fingerprint(&self) -> u128;
}

/// What exploring came to.
#[derive(Debug)]
enum Outcome {
    Safe { states: usize },
    Violation { trace: Vec<String> },
}

/// Visits every state that can be reached, nearest first: the trace of a violation is a shortest one.
fn explore<W: World>(start: &W) -> Outcome {
    let mut seen = HashSet::from([start.fingerprint()]);
    // Whence, by which of the steps there.
    let mut from = vec![(0, 0)];
    let mut frontier = VecDeque::from([(0, start.clone())]);
    while let Some((number, world)) = frontier.pop_front() {
        let mut violated = None;
        let mut step = 0;
        world.steps(&mut |_, next| {
            if violated.is_none() && seen.insert(next.fingerprint()) {
                from.push((number, step));
                if next.is_violated() {
                    violated = Some(from.len() - 1);
                }
                frontier.push_back((from.len() - 1, next));
            }
            step += 1;
        });
        if let Some(number) = violated {
            return Outcome::Violation { trace: trace(start, &from, number) };
        }
    }
    Outcome::Safe { states: seen.len() }
}

/// The names of the steps that led there, by taking them once more.
fn trace<W: World>(start: &W, from: &[(usize, usize)], mut number: usize) -> Vec<String> {
    let mut steps = Vec::new();
    while number != 0 {
        steps.push(from[number].1);
        number = from[number].0;
    }
    let (mut world, mut names) = (start.clone(), Vec::new());
    for wanted in steps.into_iter().rev() {
        let (mut step, mut taken) = (0, None);
        world.steps(&mut |name, next| {
            if step == wanted {
                names.push(name.to_string());
                taken = Some(next);
            }
            step += 1;
        });
        world = taken.expect("it was taken before");
    }
    names
}

/// 128 bits, so that two states that differ are not taken for one.
fn fingerprint(value: &impl Hash) -> u128 {
    let mut bytes = Bytes(Vec::with_capacity(256));
    value.hash(&mut bytes);
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        hasher.write_u8(salt);
        hasher.write(&bytes.0);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

/// Collects what would be hashed.
struct Bytes(Vec<u8>);

impl Hasher for Bytes {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}

/// All guards are there: nothing goes wrong. Says how many states that was.
fn is_safe<W: World>(name: &str, start: &W) {
    match explore(start) {
        Outcome::Safe { states } => tell(&format!("{name}: safe, {states} states")),
        Outcome::Violation { trace } => panic!("{name}: a revoked key was accepted\n  {}", trace.join("\n  ")),
    }
}

/// A guard is missing: something goes wrong. Says how.
fn goes_wrong<W: World>(name: &str, start: &W) {
    match explore(start) {
        Outcome::Safe { states } => panic!("{name}: nothing went wrong in {states} states; the model has no teeth"),
        Outcome::Violation { trace } => tell(&format!("{name}: a revoked key is accepted\n  {}", trace.join("\n  "))),
    }
}

/// Shown by `cargo test --lib model -- --nocapture`.
fn tell(text: &str) {
    eprintln!("{text}");
}
