//! Reasons: why a job failed, and why an instance has the status it has.
//!
//! A reason is stored as JSON in `jobs.error`, `instances.status_reason` and `events.detail`, and is shown to clients as it
//! is. The codes are a closed set that clients may match on; the detail is text for people, and may quote a registry, an
//! engine or an image.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::core::{text::CleanText, text_enum::text_enum};

text_enum! {
    /// The code of a job's error and of an instance's `status_reason`.
    pub enum ReasonCode as ReasonCode {
        /// The registry has no such image, or none for this platform.
        ImageNotFound = "image_not_found",
        /// The image could not be fetched from its registry.
        ImagePullFailed = "image_pull_failed",
        /// The host has another container of the instance's name.
        NameConflict = "name_conflict",
        /// The instance's network could not be set up on its host.
        NetworkSetupFailed = "network_setup_failed",
        /// Another process of the host listens on a published port.
        PortConflict = "port_conflict",
        /// The container could not be created or started.
        ContainerStartFailed = "container_start_failed",
        /// Every attempt of the job failed, or its workers crashed too often.
        AttemptsExhausted = "attempts_exhausted",
        /// An attempt of the job took too long.
        DeadlineExceeded = "deadline_exceeded",
        /// No host can hold the instance, or none had room in time.
        NoCapacity = "no_capacity",
        /// The instance's process ended by itself.
        ContainerExited = "container_exited",
        /// The instance's process ended soon after each of too many restarts.
        CrashLoop = "crash_loop",
        /// The instance's host does not report.
        HostLost = "host_lost",
    }
}

/// Why a job failed, or why an instance has its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reason {
    /// The cause, out of a closed set.
    pub code: ReasonCode,
    /// What happened, for people: one line of at most 2 KiB.
    #[schema(value_type = String)]
    pub detail: CleanText,
}

impl Reason {
    /// Returns a reason with this detail, from which control characters are removed.
    pub fn new(code: ReasonCode, detail: impl Into<CleanText>) -> Self {
        Self { code, detail: detail.into() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reason_is_read_back_from_its_json() {
        let reason = Reason::new(ReasonCode::HostLost, "the host does not report");

        let json = serde_json::to_value(&reason).expect("JSON");

        assert_eq!(json, json!({"code": "host_lost", "detail": "the host does not report"}));
        assert_eq!(serde_json::from_value::<Reason>(json).expect("its own JSON"), reason);
    }

    #[test]
    fn reason_with_unknown_code_is_an_error() {
        assert!(serde_json::from_value::<Reason>(json!({"code": "eaten", "detail": ""})).is_err());
    }
}
