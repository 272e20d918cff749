//! The simulated backend: keeps files instead of running containers.
//!
//! It is for tests, load and demonstrations of everything around a runtime: the queue, the worker, crashes and
//! restarts.
//!
//! ```text
//! <state_dir>/simulated/<cluster>/instances/<id>.json   a "container"
//!                                 instances/<id>.exit   written by a test, an exit code: the container ends with it
//!                                 networks/<id>/        a "network"; an empty file in it per container on it
//!                                 ledger.log            a JSON line per effective create, start, stop and rm:
//!                                                       at, op, instance, generation, token, job, pid
//! ```
//!
//! All state is in the files, so that a restarted worker, or a second one with the same `state_dir`, finds what the
//! first one left, as with a real engine. Operations take a random time and fail at a given rate, half of the failures
//! after the effect, like an answer that got lost. The outcome depends on the spec:
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
//! An instance has at most one "container" per state directory, whatever the cluster. State survives the process, but
//! not a power cut, since nothing is synced. Port conflicts and overlapping CIDRs are not simulated.

mod compute;
mod faults;
mod network;
mod record;
mod state_files;

use std::{path::PathBuf, time::Duration};

pub use compute::SimulatedCompute;
pub use network::SimulatedNetwork;

/// The settings of a simulation.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// The directory that holds the files.
    pub state_dir: PathBuf,
    /// The mean latency; each operation takes between half and one and a half of it.
    pub latency: Duration,
    /// The probability that an operation fails, from 0 to 1.
    pub fail_rate: f64,
    /// The seed of the random numbers; it makes a run repeatable as far as scheduling allows.
    pub seed: u64,
}
