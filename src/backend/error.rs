//! The errors of the backends, by cause. Whether a job is retried is decided in `worker/fault.rs`.

use thiserror::Error;

use crate::core::text::CleanText;

/// Why an operation failed. The texts often quote a registry or an engine, so they are cleaned and cut when the error
/// is made.
#[derive(Debug, Error)]
pub enum BackendError {
    /// The registry has no such image, or not for this caller.
    #[error("image not found: {0}")]
    ImageNotFound(CleanText),
    /// The image could not be fetched: no registry, a broken transfer, no space.
    #[error("image could not be pulled: {0}")]
    ImagePullFailed(CleanText),
    /// A container that is not this cluster's has the name.
    #[error("container name is taken: {0}")]
    NameConflict(CleanText),
    /// The network could not be created, or the container could not be attached to it.
    #[error("network could not be set up: {0}")]
    NetworkSetup(CleanText),
    /// Another process of this host listens on the port.
    #[error("host port is in use: {0}")]
    PortConflict(CleanText),
    /// The runtime cannot start the container: no such executable, an invalid option.
    #[error("container could not be started: {0}")]
    StartFailed(CleanText),
    /// The runtime refuses the request for another reason (4xx).
    #[error("refused by the container runtime: {0}")]
    Refused(CleanText),
    /// The runtime does not answer, or failed inside (5xx): another attempt may succeed.
    #[error("container runtime unavailable: {0}")]
    Unavailable(CleanText),
}
