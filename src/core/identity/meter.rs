//! The metrics of verifications: duration and result, by where the answer came from.
//!
//! The handles are looked up once, since a lookup by labels costs more than finding a key in the process.

use std::{
    sync::{Arc, LazyLock},
    time::Instant,
};

use metrics::{Counter, Histogram};

use super::{caller::Caller, error::IdentityError};

/// The tier that answered; the label `tier`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The key itself: its form, checksum and tag.
    Tag,
    /// The process's own map.
    Process,
    /// Redis.
    Redis,
    /// The primary.
    Primary,
}

const SOURCES: [&str; 4] = ["tag", "l1", "redis", "pg"];
const RESULTS: [&str; 3] = ["accepted", "refused", "error"];

struct Meter {
    seconds: Histogram,
    results: [Counter; RESULTS.len()],
}

// Created with the first verification: the recorder is installed by then.
static METERS: LazyLock<[Meter; SOURCES.len()]> = LazyLock::new(|| {
    SOURCES.map(|tier| Meter {
        seconds: metrics::histogram!("identity_verify_seconds", "tier" => tier),
        results: RESULTS.map(|result| metrics::counter!("identity_verify_total", "tier" => tier, "result" => result)),
    })
});

/// Records one verification.
pub(super) fn record(source: Source, started: Instant, result: &Result<Arc<Caller>, IdentityError>) {
    let meter = &METERS[source as usize];
    let result = match result {
        Ok(_) => 0,
        Err(IdentityError::Unauthenticated) => 1,
        Err(IdentityError::Db(_) | IdentityError::Busy) => 2,
    };
    meter.results[result].increment(1);
    meter.seconds.record(started.elapsed());
}
