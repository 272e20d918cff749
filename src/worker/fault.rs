//! What an error means for a job: try again, or give up with the API's name for the cause. One table, exhaustive.

use crate::{
    backend::BackendError,
    core::{queue::finish::Cause, text::CleanText},
};

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It may work later. The cause counts when attempts are used up.
    Retry(Cause),
    /// It will not work by trying again.
    GiveUp(Cause),
}

impl From<&BackendError> for Fault {
    fn from(error: &BackendError) -> Self {
        let cause = |code, detail: &CleanText| Cause { code, detail: detail.clone() };
        match error {
            BackendError::ImageNotFound(detail) => Self::GiveUp(cause("image_not_found", detail)),
            // Final as well: whoever asked wants to know now, not after eight attempts.
            BackendError::ImagePullFailed(detail) => Self::GiveUp(cause("image_pull_failed", detail)),
            BackendError::NameConflict(detail) => Self::GiveUp(cause("name_conflict", detail)),
            BackendError::NetworkSetup(detail) => Self::GiveUp(cause("network_setup_failed", detail)),
            BackendError::PortConflict(detail) => Self::GiveUp(cause("port_conflict", detail)),
            BackendError::StartFailed(detail) | BackendError::Refused(detail) => {
                Self::GiveUp(cause("container_start_failed", detail))
            }
            BackendError::Unavailable(detail) => Self::Retry(cause("attempts_exhausted", detail)),
        }
    }
}

impl Fault {
    pub fn cause(self) -> Cause {
        match self {
            Self::Retry(cause) | Self::GiveUp(cause) => cause,
        }
    }
}
