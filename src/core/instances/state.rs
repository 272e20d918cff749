//! An instance's status, and the one function that says what may follow what.
//!
//! ```text
//! pending ─► provisioning ─► running ─► stopped            (its process ended, policy says no)
//!    │            │            │  ▲ └─► starting ─► running (policy says restart; failed: crash_loop)
//!    └────────────┴► failed    │  └─ unknown               (host silent; back)
//! any ─► deleting ─► deleted                               (never placed: deleted at once)
//! ```
//! Statements do not repeat this table: they take its column for their event as two arrays (`Transition::table`).

use std::{fmt, str::FromStr};

use crate::core::kind::JobKind;

macro_rules! statuses {
    ($($name:ident = $text:literal),* $(,)?) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Status { $($name),* }

        impl Status {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }

        impl FromStr for Status {
            type Err = ();

            fn from_str(text: &str) -> Result<Self, ()> {
                match text { $($text => Ok(Self::$name),)* _ => Err(()) }
            }
        }
    };
}

statuses! {
    Pending = "pending",
    Provisioning = "provisioning",
    Running = "running",
    Stopping = "stopping",
    Stopped = "stopped",
    Starting = "starting",
    Failed = "failed",
    Unknown = "unknown",
    Deleting = "deleting",
    Deleted = "deleted",
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happens to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// A host took the job.
    Claimed(JobKind),
    Succeeded(JobKind),
    /// For good: retries are over.
    Failed(JobKind),
    /// Its process ended, and it stays so.
    Exited,
    /// Its process ended, and its policy asks for another start.
    Restarting,
    /// Its process ended once too often.
    CrashLooped,
    HostSilent,
    /// Its process was found running.
    SeenRunning,
    DeleteAccepted,
    /// The same, of an instance that no host ever had.
    DeleteAcceptedUnplaced,
}

impl Status {
    /// The status after it; `None`: it does not apply here and changes nothing.
    pub fn next(self, transition: Transition) -> Option<Self> {
        use {JobKind as Kind, Status as S, Transition as T};
        match (self, transition) {
            (S::Deleted, _) => None,
            (_, T::DeleteAccepted) => Some(S::Deleting),
            (_, T::DeleteAcceptedUnplaced) => Some(S::Deleted),
            (S::Deleting, T::Succeeded(Kind::Delete)) => Some(S::Deleted),
            // Whatever else ends meanwhile: a deleted thing does not come back.
            (S::Deleting, _) => Some(S::Deleting),
            (S::Pending | S::Provisioning, T::Claimed(Kind::Provision)) => Some(S::Provisioning),
            (S::Provisioning, T::Succeeded(Kind::Provision)) => Some(S::Running),
            (S::Pending | S::Provisioning, T::Failed(Kind::Provision)) => Some(S::Failed),
            (S::Starting, T::Claimed(Kind::Start)) => Some(S::Starting),
            (S::Starting, T::Succeeded(Kind::Start)) => Some(S::Running),
            (S::Starting, T::Failed(Kind::Start)) => Some(S::Failed),
            (S::Running | S::Unknown, T::Exited) => Some(S::Stopped),
            (S::Running | S::Unknown, T::Restarting) => Some(S::Starting),
            (S::Running | S::Unknown, T::CrashLooped) => Some(S::Failed),
            (S::Running, T::HostSilent) => Some(S::Unknown),
            (S::Unknown, T::SeenRunning) => Some(S::Running),
            _ => None,
        }
    }

    /// Whether it may still become `target` without a new request.
    pub fn can_become(self, target: Self) -> bool {
        use Status as S;
        if self == target {
            return true;
        }
        match self {
            S::Pending => !matches!(target, S::Deleting | S::Deleted),
            S::Provisioning | S::Running | S::Starting | S::Unknown => {
                !matches!(target, S::Pending | S::Deleting | S::Deleted)
            }
            S::Stopping => matches!(target, S::Stopped | S::Failed),
            S::Deleting => target == S::Deleted,
            S::Stopped | S::Failed | S::Deleted => false,
        }
    }
}

impl Transition {
    /// The statuses it applies to and what each becomes, for a statement: `from[i]` becomes `to[i]`.
    pub fn table(self) -> (Vec<&'static str>, Vec<&'static str>) {
        Status::ALL.iter().filter_map(|from| Some((from.as_str(), from.next(self)?.as_str()))).unzip()
    }
}

type Column = Vec<&'static str>;

impl Transition {
    /// The tables of one transition for all kinds of jobs: of a job of `kind[i]`, `from[i]` becomes `to[i]`.
    pub fn table_by_kind(of: impl Fn(JobKind) -> Self) -> (Column, Column, Column) {
        let (mut kinds, mut from, mut to) = (Column::new(), Column::new(), Column::new());
        for kind in JobKind::ALL {
            let (was, becomes) = of(*kind).table();
            kinds.extend(was.iter().map(|_| kind.as_str()));
            from.extend(was);
            to.extend(becomes);
        }
        (kinds, from, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transitions() -> Vec<Transition> {
        use Transition as T;
        let of_jobs = JobKind::ALL.iter().flat_map(|kind| [T::Claimed(*kind), T::Succeeded(*kind), T::Failed(*kind)]);
        of_jobs
            .chain([T::Exited, T::Restarting, T::CrashLooped, T::HostSilent, T::SeenRunning])
            .chain([T::DeleteAccepted, T::DeleteAcceptedUnplaced])
            .collect()
    }

    /// The whole table, written out a second time: every status with every transition.
    #[test]
    fn every_transition_of_every_status_is_as_documented() {
        let changes = [
            ("pending", "Claimed(Provision)", "provisioning"),
            ("pending", "Failed(Provision)", "failed"),
            ("provisioning", "Claimed(Provision)", "provisioning"),
            ("provisioning", "Succeeded(Provision)", "running"),
            ("provisioning", "Failed(Provision)", "failed"),
            ("starting", "Claimed(Start)", "starting"),
            ("starting", "Succeeded(Start)", "running"),
            ("starting", "Failed(Start)", "failed"),
            ("running", "Exited", "stopped"),
            ("running", "Restarting", "starting"),
            ("running", "CrashLooped", "failed"),
            ("running", "HostSilent", "unknown"),
            ("unknown", "Exited", "stopped"),
            ("unknown", "Restarting", "starting"),
            ("unknown", "CrashLooped", "failed"),
            ("unknown", "SeenRunning", "running"),
            ("deleting", "Succeeded(Delete)", "deleted"),
        ];
        for from in Status::ALL {
            for transition in transitions() {
                let name = format!("{transition:?}");
                let expected = match (from.as_str(), name.as_str()) {
                    ("deleted", _) => None,
                    (_, "DeleteAccepted") => Some("deleting"),
                    (_, "DeleteAcceptedUnplaced") => Some("deleted"),
                    (from, name) => changes
                        .iter()
                        .find(|change| (change.0, change.1) == (from, name))
                        .map(|change| change.2)
                        .or((from == "deleting").then_some("deleting")),
                };
                assert_eq!(from.next(transition).map(Status::as_str), expected, "{from} on {name}");
            }
        }
    }

    #[test]
    fn no_transition_brings_a_deleted_instance_back() {
        for transition in transitions() {
            assert_eq!(Status::Deleted.next(transition), None);
            assert!(matches!(Status::Deleting.next(transition), Some(Status::Deleting | Status::Deleted)));
        }
    }

    /// A wait must not give up early: what one transition can reach, `can_become` admits.
    #[test]
    fn whatever_can_follow_without_a_request_can_be_waited_for() {
        use Transition as T;
        for from in Status::ALL {
            for transition in transitions() {
                if let Some(to) = from.next(transition)
                    && !matches!(transition, T::DeleteAccepted | T::DeleteAcceptedUnplaced)
                {
                    assert!(from.can_become(to), "{from} to {to}");
                }
            }
        }
        assert!(!Status::Failed.can_become(Status::Running) && !Status::Deleting.can_become(Status::Running));
    }

    #[test]
    fn texts_read_back() {
        for status in Status::ALL {
            assert_eq!(status.as_str().parse(), Ok(*status));
        }
    }
}
