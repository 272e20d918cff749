//! A loop that stands still is worse than a process that ends: its jobs would wait for ever while the heartbeat keeps them.
//!
//! Each loop has a pulse. After 15 s without one it is counted and told; after 45 s the process ends with status 70,
//! whoever supervises it starts another, and that one takes the jobs over.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A wait inside a loop must not be longer than this without a pulse.
pub const LONGEST_WAIT: Duration = Duration::from_secs(5);
const SUSPICIOUS: Duration = Duration::from_secs(15);
const WEDGED: Duration = Duration::from_secs(45);
/// `EX_SOFTWARE` of sysexits.
pub const EXIT_STATUS: i32 = 70;

/// One loop's sign of life.
#[derive(Clone)]
pub struct Pulse {
    name: &'static str,
    started: Instant,
    /// Milliseconds after `started`.
    beat_at: Arc<AtomicU64>,
}

impl Pulse {
    pub fn new(name: &'static str) -> Self {
        Self { name, started: Instant::now(), beat_at: Arc::default() }
    }

    pub fn beat(&self) {
        self.beat_at.store(millis(self.started.elapsed()), Ordering::Relaxed);
    }

    fn still_for(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.beat_at.load(Ordering::Relaxed)))
    }
}

/// Watches on a thread of its own: the runtime may be what stands still. Ends when all loops are gone.
pub fn watch(pulses: Vec<Pulse>) {
    std::thread::spawn(move || {
        while pulses.iter().any(|pulse| Arc::strong_count(&pulse.beat_at) > 1) {
            std::thread::sleep(Duration::from_secs(1));
            for pulse in pulses.iter().filter(|pulse| Arc::strong_count(&pulse.beat_at) > 1) {
                match verdict(pulse.still_for()) {
                    Verdict::Fine => {}
                    Verdict::Suspicious => {
                        metrics::counter!("worker_loop_stalls_total", "loop" => pulse.name).increment(1);
                        tracing::warn!(r#loop = pulse.name, "a loop stands still");
                    }
                    Verdict::Wedged => {
                        tracing::error!(r#loop = pulse.name, "a loop stands still for too long; this process ends");
                        std::process::exit(EXIT_STATUS);
                    }
                }
            }
        }
    });
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    Suspicious,
    Wedged,
}

fn verdict(still_for: Duration) -> Verdict {
    match still_for {
        still if still >= WEDGED => Verdict::Wedged,
        still if still >= SUSPICIOUS => Verdict::Suspicious,
        _ => Verdict::Fine,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulse_counts_from_its_last_beat_and_limits_are_in_order() {
        let pulse = Pulse::new("test");
        pulse.beat();
        assert!(pulse.still_for() < SUSPICIOUS);
        assert_eq!(verdict(LONGEST_WAIT), Verdict::Fine);
        assert_eq!((verdict(SUSPICIOUS), verdict(WEDGED)), (Verdict::Suspicious, Verdict::Wedged));
    }
}
