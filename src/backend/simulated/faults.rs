//! Simulated latency and failures of the operations, from a seeded random number generator.
//!
//! The same seed gives the same numbers. Half of the failures come after the operation had its effect, like an answer
//! that got lost. The generator is SplitMix64, which is fast and lock-free, and not fit for cryptography.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::backend::BackendError;

/// SplitMix64's increment.
const INCREMENT: u64 = 0x9e37_79b9_7f4a_7c15;

/// Decides how long each operation takes and whether it fails.
pub(super) struct FaultInjector {
    state: AtomicU64,
    latency: Duration,
    fail_rate: f64,
}

impl FaultInjector {
    /// Returns an injector with a mean latency and a probability of failure.
    pub(super) fn new(seed: u64, latency: Duration, fail_rate: f64) -> Self {
        Self { state: AtomicU64::new(seed), latency, fail_rate }
    }

    /// Sleeps for the simulated latency, then runs `effect`, or fails, or both.
    ///
    /// # Errors
    /// `Unavailable` for an injected failure, else the error of `effect`.
    pub(super) async fn perform<T>(
        &self,
        operation: &str,
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
            return Err(BackendError::Unavailable(format!("simulated: the answer to {operation} got lost").into()));
        }
        Err(BackendError::Unavailable(format!("simulated: {operation} failed").into()))
    }

    /// Returns the next random number.
    pub(super) fn next(&self) -> u64 {
        let mut z = self.state.fetch_add(INCREMENT, Ordering::Relaxed).wrapping_add(INCREMENT);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a random number from 0 to below 1.
    #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
    fn unit(&self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_repeatable_and_uniform() {
        let (a, b) = (FaultInjector::new(7, Duration::ZERO, 0.0), FaultInjector::new(7, Duration::ZERO, 0.0));
        let mean = (0..10_000).map(|_| a.unit()).sum::<f64>() / 10_000.0;
        assert!((0.48..0.52).contains(&mean), "{mean}");
        assert!((0..10_000).all(|_| (0.0..1.0).contains(&b.unit())));
        assert_eq!(a.next(), b.next());
    }

    #[tokio::test]
    async fn injected_failures_come_before_and_after_the_effect() {
        let injector = FaultInjector::new(1, Duration::ZERO, 0.5);
        let (mut failed, mut effects) = (0, 0);
        for _ in 0..1000 {
            let outcome = injector
                .perform("test", || {
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
