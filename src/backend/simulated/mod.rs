//! The simulated backend: no container runs and no network exists. It keeps files that say so.
//!
//! For tests, load and demonstrations of everything around a runtime: the queue, the worker, crashes and restarts.
//!
//! ```text
//! <state_dir>/simulated/<cluster>/instances/<id>.json   a "container"
//!                                 instances/<id>.exit   dropped by a test, an exit code: the container ends with it
//!                                 networks/<id>/        a "network"; an empty file in it per container on it
//!                                 ledger.log            a JSON line per effective create, start, stop and rm:
//!                                                       at, op, instance, generation, token, job, pid
//! ```
//!
//! The files are the only truth, so that a restarted worker, or a second one with the same `state_dir`, finds what the
//! first left, as with a real engine. Operations take a random time and fail at a given rate, half of the failures
//! after the effect, like an answer that got lost. What happens depends on the spec:
//!
//! | spec | outcome |
//! |---|---|
//! | image `missing/…` | `ImageNotFound` |
//! | image `unreachable/…` | `ImagePullFailed` |
//! | image `garbled/…` | progress and an `ImageNotFound` of 3 MB with U+0000 and other control characters |
//! | image `panic/…` | the call panics |
//! | command `/no/such…` | `StartFailed` |
//! | command `…/false`, `…/true` | starts, then ends with 1, 0 |
//! | anything else | runs until stopped |
//!
//! Promises: one "container" per instance and state directory, whatever the cluster; state survives the process.
//! Refuses: surviving a power cut (nothing is synced); telling port conflicts.

mod chance;
mod compute;
mod machine;
mod network;
mod record;

use std::{path::PathBuf, time::Duration};

pub use compute::SimulatedCompute;
pub use network::SimulatedNetwork;

/// How the simulation behaves.
#[derive(Clone, Debug)]
pub struct Simulation {
    pub state_dir: PathBuf,
    /// The mean; each operation takes between half and one and a half of it.
    pub latency: Duration,
    /// From 0 to 1: the probability that an operation fails.
    pub fail_rate: f64,
    /// Makes a run repeatable as far as scheduling allows.
    pub seed: u64,
}
