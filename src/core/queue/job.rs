//! A job's status, and the one function that says what may follow what.
//!
//! ```text
//! queued ─claim─► running ─ok─► succeeded
//!   ▲               ├─ retryable error, released, lease expired: queued again
//!   │               ├─ permanent error, attempts or crashes exhausted: failed
//!   └───────────────┘─ cancel honoured: cancelled
//! queued ── newer intent: superseded;  fits nowhere, queue deadline: failed
//! ```

use std::{fmt, str::FromStr};

use utoipa::ToSchema;

/// What is to be done. A worker leaves kinds that it does not know to a newer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum JobKind {
    /// Create the container with its network and start it.
    Provision,
    /// Start the container that is there, by its restart policy.
    Start,
    /// Remove the container and what belongs to it.
    Delete,
}

impl JobKind {
    pub const ALL: &'static [Self] = &[Self::Provision, Self::Start, Self::Delete];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provision => "provision",
            Self::Start => "start",
            Self::Delete => "delete",
        }
    }
}

impl FromStr for JobKind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text).ok_or(())
    }
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A job's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum JobStatus {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
    Superseded,
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
    pub const ALL: &'static [Self] =
        &[Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled, Self::Superseded];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
        }
    }

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

impl FromStr for JobStatus {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|status| status.as_str() == text).ok_or(())
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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

    #[test]
    fn texts_read_back() {
        for status in JobStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(*status));
        }
    }

    #[test]
    fn kinds_read_back() {
        for kind in JobKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
        }
        assert!("unknown".parse::<JobKind>().is_err());
    }
}
