//! Random numbers for jitter, so that workers do not act in step.

/// Returns a random number, uniform in 0..=1.
pub(super) fn random_unit() -> f64 {
    f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX)
}
