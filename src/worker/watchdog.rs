//! The watchdog: ends the process when one of its loops hangs.
//!
//! A loop that hangs is worse than a process that ends: its jobs would wait without limit while the heartbeat keeps
//! their leases. Each loop counts its rounds. After a third of the limit without a new round the stall is logged and
//! counted; at the limit the process ends with status 70, its process manager starts another, and that one takes the
//! jobs over.
//!
//! The time is measured by the ticks of the watchdog's own thread, and one tick counts for 2 s at most: while the
//! process is stopped (SIGSTOP, a paused virtual machine, a suspended laptop) no loop can move, and that time must not
//! end it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{shutdown::FAILED_PART_STATUS, telemetry};

/// How long a watched loop may wait, at most, before it calls `advance` again.
pub const LOOP_WAIT_MAX: Duration = Duration::from_secs(5);
/// How often the watchdog checks the loops.
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// The time that one tick counts for, at most: a tick that comes later shows that this process did not run.
const TICK_MAX: Duration = Duration::from_secs(2);

/// Counts the rounds of one loop; the loop has one clone and the watchdog another.
#[derive(Clone)]
pub struct LoopProgress {
    name: &'static str,
    rounds: Arc<AtomicU64>,
}

impl LoopProgress {
    /// Returns the progress of a loop; `name` is its name in logs and metrics.
    pub fn new(name: &'static str) -> Self {
        Self { name, rounds: Arc::default() }
    }

    /// Counts a round of the loop.
    pub fn advance(&self) {
        self.rounds.fetch_add(1, Ordering::Relaxed);
    }
}

/// Watches loops until all of them have dropped their `LoopProgress`. A loop that makes no progress for `limit` ends
/// the process. The watchdog has a thread of its own, because the runtime itself may be what hangs.
pub fn watch(loops: Vec<LoopProgress>, limit: Duration) {
    let mut watched: Vec<(LoopProgress, Stall)> =
        loops.into_iter().map(|progress| (progress, Stall::default())).collect();
    std::thread::spawn(move || {
        let mut last_tick = Instant::now();
        while !watched.is_empty() {
            std::thread::sleep(TICK_INTERVAL);
            let since_last_tick = last_tick.elapsed();
            last_tick = Instant::now();
            watched.retain(|(progress, _)| Arc::strong_count(&progress.rounds) > 1);
            for (progress, stall) in &mut watched {
                match stall.tick(progress.rounds.load(Ordering::Relaxed), since_last_tick, limit) {
                    LoopState::Moving => {}
                    LoopState::Stalled => {
                        metrics::counter!("worker_loop_stalls_total", "loop" => progress.name).increment(1);
                        tracing::warn!(r#loop = progress.name, "a loop has stalled; this process ends if it stays so");
                    }
                    LoopState::Hung => {
                        tracing::error!(r#loop = progress.name, "a loop has stalled for too long; this process ends");
                        telemetry::exit(FAILED_PART_STATUS);
                    }
                }
            }
        }
    });
}

/// How long a loop has made no progress while this process ran.
#[derive(Default)]
struct Stall {
    rounds: u64,
    lasted: Duration,
}

impl Stall {
    /// Adds one tick of the watchdog, which found that the loop has begun so many rounds since its start.
    fn tick(&mut self, rounds: u64, since_last_tick: Duration, limit: Duration) -> LoopState {
        if rounds != self.rounds {
            *self = Self { rounds, lasted: Duration::ZERO };
            return LoopState::Moving;
        }
        self.lasted += since_last_tick.min(TICK_MAX);
        match self.lasted {
            lasted if lasted >= limit => LoopState::Hung,
            lasted if lasted >= limit / 3 => LoopState::Stalled,
            _ => LoopState::Moving,
        }
    }
}

/// The watchdog's finding about a loop.
#[derive(Debug, PartialEq, Eq)]
enum LoopState {
    /// It makes progress, or has made none for a short time.
    Moving,
    /// It has made no progress for a third of the limit.
    Stalled,
    /// It has made no progress for the limit.
    Hung,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(45);
    const SECOND: Duration = Duration::from_secs(1);

    /// The states after ticks given as (rounds so far, seconds since the tick before).
    fn states(ticks: impl IntoIterator<Item = (u64, u64)>) -> Vec<LoopState> {
        let mut stall = Stall::default();
        let tick = |(rounds, seconds): (u64, u64)| stall.tick(rounds, SECOND * seconds as u32, LIMIT);
        ticks.into_iter().map(tick).collect()
    }

    fn stalled(rounds: u64, seconds: usize) -> impl Iterator<Item = (u64, u64)> {
        std::iter::repeat_n((rounds, 1), seconds)
    }

    #[test]
    fn loop_that_hangs_is_logged_at_a_third_and_ends_at_the_limit() {
        let states = states(stalled(0, 45));

        assert!(states[..14].iter().all(|state| *state == LoopState::Moving));
        assert!(states[14..44].iter().all(|state| *state == LoopState::Stalled));
        assert_eq!(states[44], LoopState::Hung);
    }

    #[test]
    fn stall_starts_anew_after_each_round() {
        let hangs_thrice = stalled(1, 45).chain(stalled(2, 45)).chain(stalled(3, 45));

        let states = states(hangs_thrice);

        assert!(!states.contains(&LoopState::Hung));
    }

    #[test]
    fn time_in_which_the_process_was_stopped_does_not_count() {
        for (case, ticks, expected) in [
            ("stopped for an hour, first tick before the first round", vec![(7, 1), (7, 3600)], LoopState::Moving),
            ("stopped ten times", vec![(7, 60); 6], LoopState::Moving),
            ("stopped late in a hang", stalled(0, 40).chain([(0, 600)]).collect(), LoopState::Stalled),
            (
                "hangs after it was stopped",
                [(7, 1), (7, 600)].into_iter().chain(stalled(7, 43)).collect(),
                LoopState::Hung,
            ),
            ("late ticks of a busy machine", vec![(0, 2); 23], LoopState::Hung),
        ] {
            assert_eq!(states(ticks).pop(), Some(expected), "{case}");
        }
    }

    #[test]
    fn longest_wait_of_a_loop_is_no_stall() {
        let shortest = crate::config::lease::LeaseTimes { lease: Duration::from_millis(600) };

        assert!(LOOP_WAIT_MAX <= shortest.loop_limit() / 3);
    }
}
