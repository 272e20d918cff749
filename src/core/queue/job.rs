//! A job's status, and the one function that says what may follow what.
//!
//! ```text
//! queued ─claim─► running ─ok─► succeeded
//!   ▲               ├─ retryable error, released, lease expired: queued again
//!   │               ├─ permanent error, attempts or crashes exhausted: failed
//!   └───────────────┘─ cancel honoured: cancelled
//! queued ── newer intent: superseded;  fits nowhere, queue deadline: failed
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
    /// A job's status.
    pub enum JobStatus as JobStatus {
        /// Waits to be claimed.
        Queued = "queued",
        /// Is leased to a worker.
        Running = "running",
        /// Has done its work.
        Succeeded = "succeeded",
        /// Has failed and is not tried again.
        Failed = "failed",
        /// Was stopped because its owner asked for it.
        Cancelled = "cancelled",
        /// Was replaced by a newer job of the same instance.
        Superseded = "superseded",
    }
}

/// What happens to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobEvent {
    Claimed,
    Succeeded,
    /// A retryable error, a drain, or a lease that ran out: it waits for its next turn.
    Requeued,
    FailedForGood,
    CancelHonoured,
    Superseded,
}

impl JobStatus {
    /// Returns whether the job is never worked on again.
    pub const fn has_ended(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// The status after it; `None`: it does not apply here.
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
    fn every_event_of_every_status_is_as_documented() {
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
            assert_eq!(from.has_ended(), row == [None; 6], "what has ended stays as it is");
        }
    }
}
