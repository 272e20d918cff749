//! Random numbers for jitter and for places where a search begins; secrets are made elsewhere.

/// Returns a random number from 0 up to, but not including, 1; uniformly distributed.
pub fn random_unit() -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "53 bits are what an f64 holds")]
    let unit = (getrandom::u64().unwrap_or_default() >> 11) as f64 / (1u64 << 53) as f64;
    unit
}
