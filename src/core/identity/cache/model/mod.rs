//! Exhaustive model checks of the cache: every interleaving of small models around the production decision code.
//!
//! `redis` runs `Verification` against one Redis entry, `single_flight` runs `SingleFlight`, `process` runs `L1` and
//! `InvalidationReader`. Each model is explored with all guards, where no revoked key may be accepted, and with each
//! guard taken away, where one must be: a model that finds nothing wrong with a broken protocol would prove nothing
//! about a correct one. `cargo test --lib model -- --nocapture` prints the number of states and the shortest traces.

mod process;
mod process_model;
mod process_state;
mod redis;
mod redis_model;
mod redis_rules;
mod single_flight;

use std::{
    collections::{HashSet, VecDeque},
    fmt::Arguments,
    hash::{DefaultHasher, Hash, Hasher},
};

/// A system with finitely many states.
trait Model: Clone {
    /// Calls `next` with the name and the result of each possible step.
    fn steps(&self, next: &mut dyn FnMut(Arguments<'_>, Self));

    /// Returns whether a revoked key was accepted that must not have been.
    fn is_violated(&self) -> bool;

    /// Returns a number that is the same for states that differ in names only.
    fn fingerprint(&self) -> u128;
}

/// The result of an exploration.
#[derive(Debug)]
enum Outcome {
    Safe { states: usize },
    Violation { trace: Vec<String> },
}

/// Visits every reachable state in breadth-first order, so that the trace of a violation is a shortest one.
fn explore<M: Model>(start: &M) -> Outcome {
    let mut visited = HashSet::from([start.fingerprint()]);
    // For each state, the state it was reached from and which of its steps led here.
    let mut from = vec![(0, 0)];
    let mut frontier = VecDeque::from([(0, start.clone())]);
    while let Some((number, model)) = frontier.pop_front() {
        let mut violated = None;
        let mut step = 0;
        model.steps(&mut |_, next| {
            if violated.is_none() && visited.insert(next.fingerprint()) {
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
    Outcome::Safe { states: visited.len() }
}

/// Returns the names of the steps that led to a state, by taking them once more.
fn trace<M: Model>(start: &M, from: &[(usize, usize)], mut number: usize) -> Vec<String> {
    let mut steps = Vec::new();
    while number != 0 {
        steps.push(from[number].1);
        number = from[number].0;
    }
    let (mut model, mut names) = (start.clone(), Vec::new());
    for wanted in steps.into_iter().rev() {
        let (mut step, mut taken) = (0, None);
        model.steps(&mut |name, next| {
            if step == wanted {
                names.push(name.to_string());
                taken = Some(next);
            }
            step += 1;
        });
        model = taken.expect("it was taken before");
    }
    names
}

/// Returns 128 bits of hash, so that two different states are not taken for one.
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

/// Collects the bytes that would be hashed.
struct Bytes(Vec<u8>);

impl Hasher for Bytes {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}

/// Asserts that no reachable state is a violation.
fn assert_safe<M: Model>(name: &str, start: &M) {
    match explore(start) {
        Outcome::Safe { states } => eprintln!("{name}: safe, {states} states"),
        Outcome::Violation { trace } => panic!("{name}: a revoked key was accepted\n  {}", trace.join("\n  ")),
    }
}

/// Asserts that some reachable state is a violation.
fn assert_violated<M: Model>(name: &str, start: &M) {
    match explore(start) {
        Outcome::Safe { states } => {
            panic!("{name}: no violation in {states} states; the model does not notice a missing guard")
        }
        Outcome::Violation { trace } => eprintln!("{name}: a revoked key is accepted\n  {}", trace.join("\n  ")),
    }
}
