//! The table of backend errors: which are retried, and under which reason code a failure is shown.

use crate::{
    backend::BackendError,
    core::{
        instances::{Reason, ReasonCode},
        text::CleanText,
    },
};

/// The consequence of an error for the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Another attempt may succeed. The reason is shown when all attempts are used up.
    Retry(Reason),
    /// Another attempt would fail in the same way.
    GiveUp(Reason),
}

impl From<&BackendError> for Fault {
    fn from(error: &BackendError) -> Self {
        let reason = |code, detail: &CleanText| Reason { code, detail: detail.clone() };
        match error {
            BackendError::ImageNotFound(detail) => Self::GiveUp(reason(ReasonCode::ImageNotFound, detail)),
            // Final as well (ADR 6): the owner should see the error at once, not after eight attempts.
            BackendError::ImagePullFailed(detail) => Self::GiveUp(reason(ReasonCode::ImagePullFailed, detail)),
            BackendError::NameConflict(detail) => Self::GiveUp(reason(ReasonCode::NameConflict, detail)),
            BackendError::NetworkSetup(detail) => Self::GiveUp(reason(ReasonCode::NetworkSetupFailed, detail)),
            BackendError::PortConflict(detail) => Self::GiveUp(reason(ReasonCode::PortConflict, detail)),
            BackendError::StartFailed(detail) | BackendError::Refused(detail) => {
                Self::GiveUp(reason(ReasonCode::ContainerStartFailed, detail))
            }
            BackendError::Unavailable(detail) => Self::Retry(reason(ReasonCode::AttemptsExhausted, detail)),
        }
    }
}

impl Fault {
    /// Returns the reason, of a fault that is retried or not.
    pub fn into_reason(self) -> Reason {
        match self {
            Self::Retry(reason) | Self::GiveUp(reason) => reason,
        }
    }
}
