//! What a host observes of its containers outside any job: a process that ended, or a container that is gone.
//!
//! The worker reads the instance (`store::expected_on`), inspects its container, and passes both to `restart_decision`;
//! `observe` writes the decision. The statement changes nothing when status, generation, streak or start of the instance
//! are no longer those that were read, so that a job that has ended meanwhile wins.

use std::time::Duration;

use tokio_postgres::types::Json;

use super::{Reason, ReasonCode, RestartPolicy, Status, Transition, store::Expected};
use crate::core::{
    db::{DbError, DualDb, Param},
    id::{HostId, InstanceId, JobId},
    queue::job::JobKind,
};

/// The state of a container whose instance should be running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation {
    /// Its process runs.
    Running,
    /// Its process has ended.
    Ended {
        /// The exit code of the process.
        exit_code: i64,
        /// Whether some process in the container was killed for memory.
        oom_killed: bool,
    },
    /// There is no container.
    Gone,
}

/// 128 + SIGKILL: the exit code of a process that was killed for memory.
const SIGKILL_EXIT_CODE: i64 = 137;

impl Observation {
    /// Describes for people how the process ended. The runtime reports whether *any* process of the container was killed for
    /// memory: only with this exit code was it the instance's own.
    fn detail(self) -> String {
        match self {
            Self::Running => String::new(),
            Self::Ended { exit_code: SIGKILL_EXIT_CODE, oom_killed: true } => "killed: out of memory".into(),
            Self::Ended { exit_code, oom_killed: true } => {
                format!("exit code {exit_code}; a process in it ran out of memory")
            }
            Self::Ended { exit_code, oom_killed: false } => format!("exit code {exit_code}"),
            Self::Gone => "the container is gone".into(),
        }
    }
}

/// After this many restarts in a row, none of which lasted, the instance fails with `crash_loop`.
pub const RESTART_STREAK_MAX: i32 = 5;
/// A process that ran for this long ends a streak of restarts.
const STABLE_RUN_MIN: Duration = Duration::from_secs(60);

/// What follows an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartDecision {
    /// The process runs: an instance whose status is `unknown` becomes `running`.
    Alive,
    /// The instance stays stopped.
    Stopped,
    /// The process is started again.
    Restart {
        /// The pause before the start.
        after: Duration,
        /// The streak of restarts, with this one.
        streak: i32,
    },
    /// The instance fails: its process ended after each of too many restarts.
    CrashLoop,
}

/// Decides what follows, by the instance's restart policy. `ran_for`: how long the process had run; `backoff`: the first
/// pause, which doubles with each restart of the streak.
pub fn restart_decision(
    observation: Observation,
    policy: RestartPolicy,
    streak: i32,
    ran_for: Duration,
    backoff: Duration,
) -> RestartDecision {
    let failed = match observation {
        Observation::Running => return RestartDecision::Alive,
        Observation::Ended { exit_code, .. } => exit_code != 0,
        // Something outside this system removed it. That is a failure to the policy, and the next start creates it again.
        Observation::Gone => true,
    };
    let restarts = match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => failed,
        RestartPolicy::No => false,
    };
    let streak = if ran_for >= STABLE_RUN_MIN { 0 } else { streak };
    match (restarts, streak) {
        (false, _) => RestartDecision::Stopped,
        (true, RESTART_STREAK_MAX..) => RestartDecision::CrashLoop,
        (true, streak) => RestartDecision::Restart { after: backoff * (1 << streak.clamp(0, 16)), streak: streak + 1 },
    }
}

const OBSERVE: &str = include_str!("observe.sql");

/// The parameters of `observe.sql`, in its order.
struct ObserveParams {
    instance: InstanceId,
    host: HostId,
    status: Status,
    generation: i64,
    streak: i32,
    started_at: Option<time::OffsetDateTime>,
    job: JobId,
    kind: JobKind,
    after_s: Option<f64>,
    next_streak: i32,
    exit_code: Option<i64>,
    reason: Option<Json<Reason>>,
    was: Vec<Status>,
    becomes: Vec<Status>,
}

impl ObserveParams {
    fn new(host: HostId, instance: &Expected, observation: Observation, decision: RestartDecision) -> Self {
        let (transition, code) = match decision {
            RestartDecision::Alive => (Transition::FoundRunning, None),
            RestartDecision::Stopped => (Transition::Exited, Some(ReasonCode::ContainerExited)),
            RestartDecision::Restart { .. } => (Transition::Restarting, Some(ReasonCode::ContainerExited)),
            RestartDecision::CrashLoop => (Transition::CrashLooped, Some(ReasonCode::CrashLoop)),
        };
        let exit_code = match observation {
            Observation::Ended { exit_code, .. } => Some(exit_code),
            Observation::Running | Observation::Gone => None,
        };
        let (after_s, next_streak) = match decision {
            RestartDecision::Restart { after, streak } => (Some(after.as_secs_f64()), streak),
            _ => (None, instance.restart_streak),
        };
        let (was, becomes) = transition.table();
        Self {
            instance: instance.id,
            host,
            status: instance.status,
            generation: instance.generation,
            streak: instance.restart_streak,
            started_at: instance.started_at,
            job: JobId::new(),
            kind: JobKind::Start,
            after_s,
            next_streak,
            exit_code,
            reason: code.map(|code| Json(Reason::new(code, observation.detail()))),
            was,
            becomes,
        }
    }

    fn list(&self) -> [Param<'_>; 14] {
        [
            &self.instance,
            &self.host,
            &self.status,
            &self.generation,
            &self.streak,
            &self.started_at,
            &self.job,
            &self.kind,
            &self.after_s,
            &self.next_streak,
            &self.exit_code,
            &self.reason,
            &self.was,
            &self.becomes,
        ]
    }
}

/// Writes a decision, and queues the job of a restart. Returns `false` when the instance changed since it was read: nothing
/// was written then, and the caller has to read it again.
///
/// # Errors
/// Those of `DualDb::write` and of the statement.
pub async fn observe(
    db: &DualDb,
    host: HostId,
    instance: &Expected,
    observation: Observation,
    decision: RestartDecision,
) -> Result<bool, DbError> {
    let params = ObserveParams::new(host, instance, observation, decision);
    let rows = db.write().await?.query(OBSERVE, &params.list()).await?;
    Ok(!rows.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ended(exit_code: i64) -> Observation {
        Observation::Ended { exit_code, oom_killed: false }
    }

    #[test]
    fn restart_policy_decides_whether_an_ended_process_restarts() {
        let after_first = RestartDecision::Restart { after: SECOND, streak: 1 };
        for (policy, exit_code, expected) in [
            (RestartPolicy::No, 1, RestartDecision::Stopped),
            (RestartPolicy::OnFailure, 0, RestartDecision::Stopped),
            (RestartPolicy::OnFailure, 1, after_first),
            (RestartPolicy::Always, 0, after_first),
        ] {
            assert_eq!(restart_decision(ended(exit_code), policy, 0, SECOND, SECOND), expected, "{policy} {exit_code}");
        }
        assert_eq!(
            restart_decision(Observation::Running, RestartPolicy::No, 3, SECOND, SECOND),
            RestartDecision::Alive
        );
        assert_eq!(restart_decision(Observation::Gone, RestartPolicy::No, 0, SECOND, SECOND), RestartDecision::Stopped);
        assert_eq!(restart_decision(Observation::Gone, RestartPolicy::OnFailure, 0, SECOND, SECOND), after_first);
    }

    /// Waits rely on what `happens_by_itself` says of restart policies.
    #[test]
    fn transitions_of_a_policy_are_those_of_its_decisions() {
        for policy in RestartPolicy::ALL {
            let observations = [ended(0), ended(1), Observation::Gone].into_iter();
            let decisions: Vec<RestartDecision> = observations
                .flat_map(|observation| {
                    [0, RESTART_STREAK_MAX].map(|streak| restart_decision(observation, *policy, streak, SECOND, SECOND))
                })
                .collect();
            for (transition, happens) in [
                (Transition::Exited, decisions.contains(&RestartDecision::Stopped)),
                (
                    Transition::Restarting,
                    decisions
                        .iter()
                        .any(|restart_decision| matches!(restart_decision, RestartDecision::Restart { .. })),
                ),
                (Transition::CrashLooped, decisions.contains(&RestartDecision::CrashLoop)),
            ] {
                assert_eq!(transition.happens_by_itself(*policy), happens, "{transition:?} with {policy}");
            }
        }
    }

    #[test]
    fn detail_names_memory_only_when_own_process_was_killed() {
        for (exit_code, oom_killed, expected) in [
            (137, true, "killed: out of memory"),
            (137, false, "exit code 137"),
            (0, true, "exit code 0; a process in it ran out of memory"),
            (7, true, "exit code 7; a process in it ran out of memory"),
            (7, false, "exit code 7"),
        ] {
            assert_eq!(Observation::Ended { exit_code, oom_killed }.detail(), expected);
        }
    }

    #[test]
    fn pause_doubles_until_the_streak_is_too_long() {
        for streak in 0..RESTART_STREAK_MAX {
            let expected = RestartDecision::Restart { after: SECOND * (1 << streak), streak: streak + 1 };
            assert_eq!(restart_decision(ended(1), RestartPolicy::Always, streak, SECOND, SECOND), expected);
        }
        assert_eq!(
            restart_decision(ended(1), RestartPolicy::Always, RESTART_STREAK_MAX, SECOND, SECOND),
            RestartDecision::CrashLoop
        );
        let fresh = RestartDecision::Restart { after: SECOND, streak: 1 };
        assert_eq!(
            restart_decision(ended(1), RestartPolicy::Always, RESTART_STREAK_MAX, STABLE_RUN_MIN, SECOND),
            fresh
        );
    }
}
