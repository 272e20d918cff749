//! What an error means for a job: try again, or give up with the API's name for the cause. One table, exhaustive.

use crate::{
    backend::BackendError,
    core::{
        instances::{Reason, ReasonCode},
        text::CleanText,
    },
};

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It may work later. The cause counts when attempts are used up.
    Retry(Reason),
    /// It will not work by trying again.
    GiveUp(Reason),
}

impl From<&BackendError> for Fault {
    fn from(error: &BackendError) -> Self {
        let cause = |code, detail: &CleanText| Reason { code, detail: detail.clone() };
        match error {
            BackendError::ImageNotFound(detail) => Self::GiveUp(cause(ReasonCode::ImageNotFound, detail)),
            // Final as well: whoever asked wants to know now, not after eight attempts.
            BackendError::ImagePullFailed(detail) => Self::GiveUp(cause(ReasonCode::ImagePullFailed, detail)),
            BackendError::NameConflict(detail) => Self::GiveUp(cause(ReasonCode::NameConflict, detail)),
            BackendError::NetworkSetup(detail) => Self::GiveUp(cause(ReasonCode::NetworkSetupFailed, detail)),
            BackendError::PortConflict(detail) => Self::GiveUp(cause(ReasonCode::PortConflict, detail)),
            BackendError::StartFailed(detail) | BackendError::Refused(detail) => {
                Self::GiveUp(cause(ReasonCode::ContainerStartFailed, detail))
            }
            BackendError::Unavailable(detail) => Self::Retry(cause(ReasonCode::AttemptsExhausted, detail)),
        }
    }
}

impl Fault {
    pub fn cause(self) -> Reason {
        match self {
            Self::Retry(cause) | Self::GiveUp(cause) => cause,
        }
    }
}
