//! The kinds of jobs, their statuses, and the one function that says which status follows which.
//!
//! ```text
//! queued ── claim ──► running ── done ──► succeeded
//!   ▲                   ├─ retryable error, release, lease expired: queued again
//!   └───────────────────┤
//!                       ├─ permanent error, attempts or crashes exhausted: failed
//!                       └─ owner deleted the instance: cancelled, or superseded before the attempt began
//! queued ── newer job of the instance: superseded;  no host can hold it, queue deadline: failed
//! ```

use crate::core::text_enum::text_enum;

text_enum! {
    /// The work that a job does. A worker leaves kinds that it does not know to workers of a newer release.
    pub enum JobKind as JobKind {
        /// Creates the container with its network and starts it.
        Provision = "provision",
        /// Starts the container that exists, by the instance's restart policy.
        Start = "start",
        /// Removes the container and everything that belongs to it.
        Delete = "delete",
    }
}

text_enum! {
    /// The status of a job.
    pub enum JobStatus as JobStatus {
        /// It waits to be claimed.
        Queued = "queued",
        /// A worker holds it under a lease.
        Running = "running",
        /// Its work is done.
        Succeeded = "succeeded",
        /// It has failed and is not tried again.
        Failed = "failed",
        /// Its attempt stopped because the owner deleted the instance.
        Cancelled = "cancelled",
        /// A newer job of the same instance replaced it.
        Superseded = "superseded",
    }
}

/// An event that changes the status of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobEvent {
    /// A worker claimed it.
    Claimed,
    /// An attempt did its work.
    Succeeded,
    /// A retryable error, a release by a draining worker, or an expired lease: it waits to be claimed again.
    Requeued,
    /// An error that is not retried, or the last attempt's error.
    FailedForGood,
    /// The attempt stopped because the owner deleted the instance.
    CancelHonoured,
    /// A newer job of the instance made it pointless.
    Superseded,
}

impl JobStatus {
    /// Returns whether the status is final.
    pub const fn has_ended(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// Returns the status after the event; `None` where the event cannot happen.
    pub fn next(self, event: JobEvent) -> Option<Self> {
        match (self, event) {
            (Self::Queued, JobEvent::Claimed) => Some(Self::Running),
            (Self::Running, JobEvent::Succeeded) => Some(Self::Succeeded),
            (Self::Running, JobEvent::Requeued) => Some(Self::Queued),
            (Self::Queued | Self::Running, JobEvent::FailedForGood) => Some(Self::Failed),
            (Self::Queued | Self::Running, JobEvent::CancelHonoured) => Some(Self::Cancelled),
            (Self::Queued | Self::Running, JobEvent::Superseded) => Some(Self::Superseded),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_status_is_as_documented_for_every_event() {
        use {JobEvent as E, JobStatus as S};
        let events = [E::Claimed, E::Succeeded, E::Requeued, E::FailedForGood, E::CancelHonoured, E::Superseded];
        let expected = [
            // claimed, succeeded, requeued, failed, cancelled, superseded
            (S::Queued, [Some(S::Running), None, None, Some(S::Failed), Some(S::Cancelled), Some(S::Superseded)]),
            (
                S::Running,
                [None, Some(S::Succeeded), Some(S::Queued), Some(S::Failed), Some(S::Cancelled), Some(S::Superseded)],
            ),
            (S::Succeeded, [None; 6]),
            (S::Failed, [None; 6]),
            (S::Cancelled, [None; 6]),
            (S::Superseded, [None; 6]),
        ];
        assert_eq!(expected.len(), S::ALL.len());
        for (from, row) in expected {
            for (event, to) in events.into_iter().zip(row) {
                assert_eq!(from.next(event), to, "{from} on {event:?}");
            }
            assert_eq!(from.has_ended(), row == [None; 6], "a final status stays as it is");
        }
    }
}
