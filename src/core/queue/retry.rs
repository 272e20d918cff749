//! When a failed attempt is repeated: exponential back-off with jitter, up to a number of attempts.

use std::time::Duration;

use crate::core::queue::job::JobKind;

/// The back-off after the first failure.
const BACKOFF_MIN: Duration = Duration::from_secs(2);
/// The back-off never exceeds this, before jitter.
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// Returns how long to wait after the `failures`-th failure in a row (from 1): `min(300 s, 2 s · 2^(n-1))`, times 0.5
/// to 1.5. `jitter` is uniform in 0..1.
pub fn backoff(failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX).mul_f64(0.5 + jitter.clamp(0.0, 1.0))
}

/// Returns whether the job has used its attempts up. A delete has no limit: it must not leave a container behind.
pub fn exhausted(kind: JobKind, attempt: u32, max_attempts: u32) -> bool {
    kind != JobKind::Delete && attempt >= max_attempts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_maximum() {
        assert_eq!(backoff(1, 0.5), Duration::from_secs(2));
        assert_eq!(backoff(2, 0.5), Duration::from_secs(4));
        assert_eq!(backoff(40, 0.5), BACKOFF_MAX);
        assert_eq!((backoff(1, 0.0), backoff(1, 1.0)), (Duration::from_secs(1), Duration::from_secs(3)));
    }

    #[test]
    fn eight_attempts_take_about_four_minutes() {
        let all: Duration = (1..8).map(|n| backoff(n, 0.5)).sum();

        assert_eq!(all, Duration::from_secs(254));
    }

    #[test]
    fn attempts_are_exhausted_except_those_of_a_delete() {
        assert!(exhausted(JobKind::Provision, 8, 8) && !exhausted(JobKind::Provision, 7, 8));
        assert!(!exhausted(JobKind::Delete, 1000, 8));
    }
}
