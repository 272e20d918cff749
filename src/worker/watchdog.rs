//! A loop that stands still is worse than a process that ends: its jobs would wait for ever while the heartbeat keeps them.
//!
//! Each loop has a pulse. After a third of the limit without one it is counted and logged; at the limit the process ends with
//! status 70, its supervisor starts another, and that one takes the jobs over.
//!
//! Only time in which the watchdog's own thread ran counts, measured by its ticks: while the process is stopped (SIGSTOP, a
//! paused virtual machine, a suspended laptop) no loop can move, and that time counts for 2 s at most.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{shutdown::FAILED_PART_STATUS, telemetry};

/// A wait inside a loop must not be longer than this without a pulse.
pub const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How often the watchdog looks at the pulses.
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// What one tick counts for at most: a later one shows that this process did not run.
const TICK_MAX: Duration = Duration::from_secs(2);

/// One loop's sign of life.
#[derive(Clone)]
pub struct Pulse {
    name: &'static str,
    beats: Arc<AtomicU64>,
}

impl Pulse {
    pub fn new(name: &'static str) -> Self {
        Self { name, beats: Arc::default() }
    }

    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }
}

/// Watches on a thread of its own: the runtime may be what stands still. Ends when all loops are gone. `limit`: how long a
/// loop may stand still before the process ends.
pub fn watch(pulses: Vec<Pulse>, limit: Duration) {
    let mut watched: Vec<(Pulse, Stillness)> = pulses.into_iter().map(|pulse| (pulse, Stillness::default())).collect();
    std::thread::spawn(move || {
        let mut last_tick = Instant::now();
        while !watched.is_empty() {
            std::thread::sleep(TICK_INTERVAL);
            let since_last_tick = last_tick.elapsed();
            last_tick = Instant::now();
            watched.retain(|(pulse, _)| Arc::strong_count(&pulse.beats) > 1);
            for (pulse, stillness) in &mut watched {
                match stillness.tick(pulse.beats.load(Ordering::Relaxed), since_last_tick, limit) {
                    Verdict::Fine => {}
                    Verdict::Suspicious => {
                        metrics::counter!("worker_loop_stalls_total", "loop" => pulse.name).increment(1);
                        tracing::warn!(r#loop = pulse.name, "a loop stands still");
                    }
                    Verdict::Wedged => {
                        tracing::error!(r#loop = pulse.name, "a loop stands still for too long; this process ends");
                        telemetry::exit(FAILED_PART_STATUS);
                    }
                }
            }
        }
    });
}

/// How long a loop has stood still while this process ran.
#[derive(Default)]
struct Stillness {
    beats: u64,
    still_for: Duration,
}

impl Stillness {
    /// Takes in what one tick of the watchdog shows: the pulse's count of beats, and the time since the tick before.
    fn tick(&mut self, beats: u64, since_last_tick: Duration, limit: Duration) -> Verdict {
        if beats != self.beats {
            *self = Self { beats, still_for: Duration::ZERO };
            return Verdict::Fine;
        }
        self.still_for += since_last_tick.min(TICK_MAX);
        match self.still_for {
            still if still >= limit => Verdict::Wedged,
            still if still >= limit / 3 => Verdict::Suspicious,
            _ => Verdict::Fine,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    Suspicious,
    Wedged,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(45);
    const SECOND: Duration = Duration::from_secs(1);

    /// The verdicts of ticks given as (beats so far, seconds since the tick before).
    fn verdicts(ticks: impl IntoIterator<Item = (u64, u64)>) -> Vec<Verdict> {
        let mut stillness = Stillness::default();
        let tick = |(beats, seconds): (u64, u64)| stillness.tick(beats, SECOND * seconds as u32, LIMIT);
        ticks.into_iter().map(tick).collect()
    }

    fn still(beats: u64, seconds: usize) -> impl Iterator<Item = (u64, u64)> {
        std::iter::repeat_n((beats, 1), seconds)
    }

    #[test]
    fn loop_that_hangs_is_logged_at_a_third_and_ends_at_the_limit() {
        let verdicts = verdicts(still(0, 45));

        assert!(verdicts[..14].iter().all(|verdict| *verdict == Verdict::Fine));
        assert!(verdicts[14..44].iter().all(|verdict| *verdict == Verdict::Suspicious));
        assert_eq!(verdicts[44], Verdict::Wedged);
    }

    #[test]
    fn stillness_counts_anew_after_each_beat() {
        let hangs_thrice = still(1, 45).chain(still(2, 45)).chain(still(3, 45));

        let verdicts = verdicts(hangs_thrice);

        assert!(!verdicts.contains(&Verdict::Wedged));
    }

    #[test]
    fn time_in_which_the_process_was_stopped_does_not_count() {
        for (what, ticks, expected) in [
            ("stopped for an hour, first tick before the first beat", vec![(7, 1), (7, 3600)], Verdict::Fine),
            ("stopped ten times", vec![(7, 60); 6], Verdict::Fine),
            ("stopped late in a hang", still(0, 40).chain([(0, 600)]).collect(), Verdict::Suspicious),
            (
                "hangs after it was stopped",
                [(7, 1), (7, 600)].into_iter().chain(still(7, 43)).collect(),
                Verdict::Wedged,
            ),
            ("late ticks of a busy machine", vec![(0, 2); 23], Verdict::Wedged),
        ] {
            assert_eq!(verdicts(ticks).pop(), Some(expected), "{what}");
        }
    }

    #[test]
    fn longest_wait_of_a_loop_is_never_suspicious() {
        let shortest = crate::config::lease::LeaseTimes { lease: Duration::from_millis(600) };

        assert!(LONGEST_WAIT <= shortest.loop_limit() / 3);
    }
}
