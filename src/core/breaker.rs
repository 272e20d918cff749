//! Redis that does not answer must not cost each request its time-out: after three failures in a row nobody asks for a
//! second, doubling to ten; then one asks, and its success lets everybody in again. In a row, not as a share: one that is
//! short of processor time sees failures too, and Postgres would not be quicker (ADR 14).

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

const FAILURES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

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
    /// Somebody is trying.
    probing: bool,
}

impl Breaker {
    /// Whether to ask Redis now. Once a pause is over, only one is told so.
    pub fn allows(&self, now: Instant) -> bool {
        let mut state = self.state();
        match &mut state.open {
            None => true,
            Some(open) if now >= open.until && !open.probing => {
                open.probing = true;
                true
            }
            // A probe that was dropped must not block for ever.
            Some(open) if now >= open.until + LONGEST_PAUSE => {
                open.until = now;
                true
            }
            Some(_) => false,
        }
    }

    pub fn succeeded(&self) {
        let mut state = self.state();
        state.failures = 0;
        state.open = None;
    }

    pub fn failed(&self, now: Instant) {
        let mut state = self.state();
        state.failures += 1;
        let pause = match state.open {
            Some(open) if open.probing => (open.pause * 2).min(LONGEST_PAUSE),
            Some(_) => return,
            None if state.failures >= FAILURES => FIRST_PAUSE,
            None => return,
        };
        state.open = Some(Open { until: now + pause, pause, probing: false });
    }

    pub fn is_open(&self) -> bool {
        self.state().open.is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_three_failures_tries_once_and_closes_on_success() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        breaker.failed(start);
        breaker.failed(start);
        assert!(breaker.allows(start));
        breaker.failed(start);
        assert!(!breaker.allows(start));
        let after = start + FIRST_PAUSE;
        assert!(breaker.allows(after) && !breaker.allows(after), "one probe");
        breaker.failed(after);
        assert!(!breaker.allows(after + FIRST_PAUSE), "twice as long");
        assert!(breaker.allows(after + 2 * FIRST_PAUSE));
        breaker.succeeded();
        assert!(breaker.allows(after) && breaker.allows(after));
    }

    #[test]
    fn pauses_stop_growing_and_a_lost_probe_is_replaced() {
        let (breaker, mut now) = (Breaker::default(), Instant::now());
        (0..3).for_each(|_| breaker.failed(now));
        for _ in 0..8 {
            now += LONGEST_PAUSE;
            assert!(breaker.allows(now));
            breaker.failed(now);
        }
        assert!(!breaker.allows(now + LONGEST_PAUSE / 2) && breaker.allows(now + LONGEST_PAUSE));
        assert!(!breaker.allows(now + LONGEST_PAUSE), "the probe is under way");
        assert!(breaker.allows(now + 2 * LONGEST_PAUSE), "or was lost");
    }
}
