//! A circuit breaker: a Redis that does not answer must not cost every request its time-out.
//!
//! ```text
//! closed ── 3 failures in a row ──► open, for 1 s ── pause over ──► one probe ── success ──► closed
//!                                     ▲                                 │
//!                                     └── failure: twice as long, at most 10 s
//! ```
//! It counts failures in a row, not their share: a process that is short of processor time sees some failures too, and
//! would be no faster with Postgres (ADR 14). A crate was not used, since those known count shares or wrap the call.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Failures in a row that open the breaker.
const FAILURES_MAX: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A circuit breaker, closed at first.
#[derive(Debug, Default)]
pub struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    open: Option<Open>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    until: Instant,
    pause: Duration,
    /// Whether the probe was given out.
    probing: bool,
}

impl Breaker {
    /// Returns whether to use Redis now. Of the callers after a pause only one gets `true`, and makes the probe.
    pub fn allows(&self, now: Instant) -> bool {
        let mut state = self.0.lock();
        match &mut state.open {
            None => true,
            Some(open) if now >= open.until && !open.probing => {
                open.probing = true;
                true
            }
            // The task that made the probe may have been dropped: give out another one.
            Some(open) if now >= open.until + PAUSE_MAX => {
                open.until = now;
                true
            }
            Some(_) => false,
        }
    }

    /// Records a success, which closes the breaker.
    pub fn succeeded(&self) {
        let mut state = self.0.lock();
        state.failures = 0;
        state.open = None;
    }

    /// Records a failure at `now`.
    pub fn failed(&self, now: Instant) {
        let mut state = self.0.lock();
        state.failures += 1;
        let pause = match state.open {
            Some(open) if open.probing => (open.pause * 2).min(PAUSE_MAX),
            Some(_) => return,
            None if state.failures >= FAILURES_MAX => PAUSE_MIN,
            None => return,
        };
        state.open = Some(Open { until: now + pause, pause, probing: false });
    }

    /// Returns whether it is open, also while its probe is under way.
    pub fn is_open(&self) -> bool {
        self.0.lock().open.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaker_opens_after_three_failures_and_closes_on_success() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        breaker.failed(start);
        breaker.failed(start);
        assert!(breaker.allows(start));
        breaker.failed(start);
        assert!(!breaker.allows(start));
        let after = start + PAUSE_MIN;
        assert!(breaker.allows(after) && !breaker.allows(after), "one probe");
        breaker.failed(after);
        assert!(!breaker.allows(after + PAUSE_MIN), "twice as long");
        assert!(breaker.allows(after + 2 * PAUSE_MIN));
        breaker.succeeded();
        assert!(breaker.allows(after) && breaker.allows(after));
    }

    #[test]
    fn pause_stops_growing_and_a_lost_probe_is_replaced() {
        let (breaker, mut now) = (Breaker::default(), Instant::now());
        (0..3).for_each(|_| breaker.failed(now));
        for _ in 0..8 {
            now += PAUSE_MAX;
            assert!(breaker.allows(now));
            breaker.failed(now);
        }
        assert!(!breaker.allows(now + PAUSE_MAX / 2) && breaker.allows(now + PAUSE_MAX));
        assert!(!breaker.allows(now + PAUSE_MAX), "the probe is under way");
        assert!(breaker.allows(now + 2 * PAUSE_MAX), "or was lost");
    }
}
