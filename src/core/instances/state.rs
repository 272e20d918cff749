//! An instance's status, and the one function that states which status may follow which.
//!
//! ```text
//! pending ─► provisioning ─► running ─► stopped            (its process ended, policy says no)
//!    │            │            │  ▲ └─► starting ─► running (policy says restart; failed: crash_loop)
//!    └────────────┴► failed    │  └─ unknown               (host silent; back)
//! any ─► deleting ─► deleted                               (never placed: deleted at once)
//! ```
//! Statements do not repeat this table. Each gets the part for its own transition as two arrays (`Transition::table`), and
//! leaves an instance as it is whose status is not in the first one. So a transition that comes too late changes nothing.

use super::restart_policy::RestartPolicy;
use crate::core::{queue::job::JobKind, text_enum::text_enum};

text_enum! {
    /// An instance's status.
    pub enum Status as InstanceStatus {
        /// Accepted; no host has taken it yet.
        Pending = "pending",
        /// A worker creates its container and network.
        Provisioning = "provisioning",
        /// Its process runs.
        Running = "running",
        /// A worker stops its process.
        Stopping = "stopping",
        /// Its process has ended and is not started again.
        Stopped = "stopped",
        /// A worker starts its container again.
        Starting = "starting",
        /// Its job failed for good, or its process ended too often.
        Failed = "failed",
        /// Its host has not reported for too long.
        Unknown = "unknown",
        /// A worker removes its container.
        Deleting = "deleting",
        /// Its container and network are gone; it can be read for 24 hours.
        Deleted = "deleted",
    }
}

macro_rules! transitions {
    ($($(#[$doc:meta])* $name:ident $(($of:ident))?),* $(,)?) => {
        /// Something that happens to an instance.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Transition { $($(#[$doc])* $name $(($of))?),* }

        impl Transition {
            /// Every transition, those of jobs with every kind.
            fn all() -> impl Iterator<Item = Self> {
                [$(transitions!(@each $name $($of)?)),*].into_iter().flatten()
            }
        }
    };
    (@each $name:ident) => { vec![Self::$name] };
    (@each $name:ident $of:ident) => { $of::ALL.iter().map(|of| Self::$name(*of)).collect() };
}

transitions! {
    /// A host claimed a job of this kind.
    Claimed(JobKind),
    /// A job of this kind succeeded.
    Succeeded(JobKind),
    /// A job of this kind failed and is not tried again.
    Failed(JobKind),
    /// The process ended, and its restart policy asks for no other start.
    Exited,
    /// The process ended, and its restart policy asks for another start.
    Restarting,
    /// The process ended after each of too many restarts.
    CrashLooped,
    /// The host has not reported for too long.
    HostSilent,
    /// The process was found running.
    FoundRunning,
    /// A delete of an instance that has a host was accepted.
    DeleteAccepted,
    /// A delete of an instance that no host ever had was accepted.
    DeleteAcceptedUnplaced,
}

impl Status {
    /// Returns the status after a transition; `None`: the transition does not apply, and changes nothing.
    pub fn next(self, transition: Transition) -> Option<Self> {
        use {JobKind as Kind, Status as S, Transition as T};
        match (self, transition) {
            (S::Deleted, _) => None,
            (_, T::DeleteAccepted) => Some(S::Deleting),
            (_, T::DeleteAcceptedUnplaced) => Some(S::Deleted),
            (S::Deleting, T::Succeeded(Kind::Delete)) => Some(S::Deleted),
            // A delete is never undone, whatever else ends meanwhile.
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
            (S::Unknown, T::FoundRunning) => Some(S::Running),
            _ => None,
        }
    }

    /// Returns whether an instance with this restart policy has the status `target`, or may reach it without a new request:
    /// by transitions that no request causes. A request that was accepted has changed the status already.
    pub fn can_become(self, target: Self, policy: RestartPolicy) -> bool {
        let mut reached = vec![self];
        let mut next = 0;
        while let Some(from) = reached.get(next).copied() {
            next += 1;
            for to in Transition::all().filter(|t| t.happens_by_itself(policy)).filter_map(|t| from.next(t)) {
                if !reached.contains(&to) {
                    reached.push(to);
                }
            }
        }
        reached.contains(&target)
    }
}

impl Transition {
    /// Returns whether the transition happens without a request to instances with this restart policy.
    pub fn happens_by_itself(self, policy: RestartPolicy) -> bool {
        match self {
            Self::DeleteAccepted | Self::DeleteAcceptedUnplaced => false,
            Self::Exited => policy != RestartPolicy::Always,
            Self::Restarting | Self::CrashLooped => policy != RestartPolicy::No,
            Self::Claimed(_) | Self::Succeeded(_) | Self::Failed(_) | Self::HostSilent | Self::FoundRunning => true,
        }
    }

    /// Returns the statuses that the transition applies to and what each becomes, for a statement: `from[i]` becomes `to[i]`.
    pub fn table(self) -> (Vec<Status>, Vec<Status>) {
        Status::ALL.iter().filter_map(|from| Some((*from, from.next(self)?))).unzip()
    }

    /// Returns the tables of one transition for all kinds of jobs: of a job of `kind[i]`, `from[i]` becomes `to[i]`.
    pub fn table_by_kind(of: impl Fn(JobKind) -> Self) -> (Vec<JobKind>, Vec<Status>, Vec<Status>) {
        let (mut kinds, mut from, mut to) = (Vec::new(), Vec::new(), Vec::new());
        for kind in JobKind::ALL {
            let (was, becomes) = of(*kind).table();
            kinds.extend(was.iter().map(|_| *kind));
            from.extend(was);
            to.extend(becomes);
        }
        (kinds, from, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole table, written out a second time: every status with every transition.
    #[test]
    fn status_after_each_transition_is_as_documented() {
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
            ("unknown", "FoundRunning", "running"),
            ("deleting", "Succeeded(Delete)", "deleted"),
        ];
        for from in Status::ALL {
            for transition in Transition::all() {
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
    fn deleted_instance_never_comes_back() {
        for transition in Transition::all() {
            assert_eq!(Status::Deleted.next(transition), None);
            assert!(matches!(Status::Deleting.next(transition), Some(Status::Deleting | Status::Deleted)));
        }
    }

    /// Every status with every target and policy, written out a second time.
    #[test]
    fn status_is_reachable_only_without_a_new_request() {
        use Status as S;
        let by_itself = |from: S, policy: RestartPolicy| -> &[S] {
            match (from, policy) {
                (S::Deleting, _) => &[S::Deleted],
                (S::Stopping | S::Stopped | S::Failed | S::Deleted, _) => &[],
                (S::Running | S::Unknown, RestartPolicy::No) => &[S::Running, S::Stopped, S::Unknown],
                (_, RestartPolicy::No) => &[S::Running, S::Stopped, S::Failed, S::Unknown],
                (_, RestartPolicy::OnFailure) => &[S::Running, S::Stopped, S::Starting, S::Failed, S::Unknown],
                (_, RestartPolicy::Always) => &[S::Running, S::Starting, S::Failed, S::Unknown],
            }
        };
        for (policy, from, target) in RestartPolicy::ALL.iter().flat_map(|policy| {
            S::ALL.iter().flat_map(move |from| S::ALL.iter().map(move |target| (*policy, *from, *target)))
        }) {
            let expected = target == from
                || by_itself(from, policy).contains(&target)
                || (from, target) == (S::Pending, S::Provisioning);
            assert_eq!(from.can_become(target, policy), expected, "{from} to {target} with {policy}");
        }
    }
}
