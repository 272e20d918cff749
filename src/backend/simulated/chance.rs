//! Chance: how long an operation takes and whether it fails.
//!
//! Promises: the same seed gives the same numbers; half of the failures come after the effect.
//! Refuses: cryptographic quality.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::backend::BackendError;

/// SplitMix64's increment.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

pub(super) struct Chance {
    state: AtomicU64,
    latency: Duration,
    fail_rate: f64,
}

impl Chance {
    pub(super) fn new(seed: u64, latency: Duration, fail_rate: f64) -> Self {
        Self { state: AtomicU64::new(seed), latency, fail_rate }
    }

    /// Takes its time, then has the effect, or fails, or both.
    pub(super) async fn perform<T>(
        &self,
        what: &str,
        effect: impl FnOnce() -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        if !self.latency.is_zero() {
            tokio::time::sleep(self.latency.mul_f64(0.5 + self.unit())).await;
        }
        if self.unit() >= self.fail_rate {
            return effect();
        }
        if self.next() & 1 == 0 {
            effect()?;
            return Err(BackendError::Unavailable(format!("simulated: the answer to {what} got lost").into()));
        }
        Err(BackendError::Unavailable(format!("simulated: {what} failed").into()))
    }

    pub(super) fn next(&self) -> u64 {
        // SplitMix64: an atomic counter and a mixer, so no lock.
        let mut z = self.state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
    fn unit(&self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_repeatable_and_even() {
        let (a, b) = (Chance::new(7, Duration::ZERO, 0.0), Chance::new(7, Duration::ZERO, 0.0));
        let mean = (0..10_000).map(|_| a.unit()).sum::<f64>() / 10_000.0;
        assert!((0.48..0.52).contains(&mean), "{mean}");
        assert!((0..10_000).all(|_| (0.0..1.0).contains(&b.unit())));
        assert_eq!(a.next(), b.next());
    }

    #[tokio::test]
    async fn failures_come_before_and_after_the_effect() {
        let chance = Chance::new(1, Duration::ZERO, 0.5);
        let (mut failed, mut effects) = (0, 0);
        for _ in 0..1000 {
            let outcome = chance
                .perform("it", || {
                    effects += 1;
                    Ok(())
                })
                .await;
            failed += u32::from(outcome.is_err());
        }
        assert!((450..550).contains(&failed), "{failed}");
        assert!((700..800).contains(&effects), "{effects}");
    }
}
