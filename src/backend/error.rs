//! What can go wrong at a backend, by cause. Whether to retry is not decided here: `worker/fault.rs` does.

use thiserror::Error;

use crate::core::text::CleanText;

/// The texts are often the registry's or the engine's own words, so they are cleaned and cut when an error is made.
#[derive(Debug, Error)]
pub enum BackendError {
    /// The registry answered: there is no such image, or not for this caller.
    #[error("image not found: {0}")]
    ImageNotFound(CleanText),
    /// The image could not be fetched: no registry, a broken transfer, no space.
    #[error("image could not be pulled: {0}")]
    ImagePullFailed(CleanText),
    /// A container that is not ours has our name.
    #[error("container name is taken: {0}")]
    NameConflict(CleanText),
    #[error("network could not be set up: {0}")]
    NetworkSetup(CleanText),
    /// Something else on this host listens on the port.
    #[error("host port is in use: {0}")]
    PortConflict(CleanText),
    /// The runtime refuses to start it: no such executable, an invalid option.
    #[error("container could not be started: {0}")]
    StartFailed(CleanText),
    /// The spec asks for what this runtime refuses (4xx other than the above).
    #[error("refused by the container runtime: {0}")]
    Refused(CleanText),
    /// The runtime does not answer, or failed inside (5xx): worth another try.
    #[error("container runtime unavailable: {0}")]
    Unavailable(CleanText),
}
