//! What a host sees of its containers, outside any job: guarded by what it had read, so that a job's end wins.

use std::time::Duration;

use serde_json::json;

use crate::core::{
    db::{DbError, DualDb},
    id::{HostId, JobId},
    instances::{Transition, store::Expected},
    queue::job::JobKind,
};

/// What was seen of a container whose instance should be running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation {
    Running,
    /// Its process ended; what follows is decided by `verdict`.
    Ended {
        exit_code: i64,
        /// Some process in the container was killed for memory.
        oom_killed: bool,
    },
    /// There is no container any more.
    Gone,
}

/// 128 + SIGKILL: the exit code of a process that was killed for memory.
const KILLED: i64 = 137;

impl Observation {
    /// Says in the instance's reason how its process ended. The runtime tells whether *any* process of the container was
    /// killed for memory: only with this exit code was it the instance's own.
    fn detail(self) -> String {
        match self {
            Self::Running => String::new(),
            Self::Ended { exit_code: KILLED, oom_killed: true } => "killed: out of memory".into(),
            Self::Ended { exit_code, oom_killed: true } => {
                format!("exit code {exit_code}; a process in it ran out of memory")
            }
            Self::Ended { exit_code, oom_killed: false } => format!("exit code {exit_code}"),
            Self::Gone => "the container is gone".into(),
        }
    }
}

/// Restarts in a row, none of which lasted, after which it is given up.
pub const CRASH_LOOP: i32 = 5;
/// A run of this length ends a streak of restarts.
const LASTED: Duration = Duration::from_secs(60);

/// What follows, by the instance's restart policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartDecision {
    Alive,
    Stopped,
    /// Start it again after the pause; the streak as it is from now on.
    Restart {
        after: Duration,
        streak: i32,
    },
    CrashLoop,
}

/// Decides what follows. `ran_for`: how long its process had run; `backoff`: the first pause, doubled each time.
pub fn restart_decision(
    seen: Observation,
    policy: &str,
    streak: i32,
    ran_for: Duration,
    backoff: Duration,
) -> RestartDecision {
    let exit_code = match seen {
        Observation::Running => return RestartDecision::Alive,
        Observation::Ended { exit_code, .. } => exit_code,
        // Somebody removed it: for a policy that is a failure, and the next start creates it again.
        Observation::Gone => -1,
    };
    let wanted = match policy {
        "always" => true,
        "on_failure" => exit_code != 0,
        _ => false,
    };
    let streak = if ran_for >= LASTED { 0 } else { streak };
    match (wanted, streak) {
        (false, _) => RestartDecision::Stopped,
        (true, CRASH_LOOP..) => RestartDecision::CrashLoop,
        (true, streak) => RestartDecision::Restart { after: backoff * (1 << streak.clamp(0, 16)), streak: streak + 1 },
    }
}

/// Writes what was seen. `None`: the instance changed meanwhile, nothing was written; look again. Otherwise the job
/// that will start it again, if one was queued.
///
/// # Errors
/// As the database says.
pub async fn observe(
    db: &DualDb,
    host: HostId,
    instance: &Expected,
    seen: Observation,
    restart_decision: RestartDecision,
) -> Result<Option<Option<JobId>>, DbError> {
    let (transition, code) = match restart_decision {
        RestartDecision::Alive => (Transition::SeenRunning, None),
        RestartDecision::Stopped => (Transition::Exited, Some("container_exited")),
        RestartDecision::Restart { .. } => (Transition::Restarting, Some("container_exited")),
        RestartDecision::CrashLoop => (Transition::CrashLooped, Some("crash_loop")),
    };
    let exit_code = match seen {
        Observation::Ended { exit_code, .. } => Some(exit_code),
        Observation::Running | Observation::Gone => None,
    };
    let detail = seen.detail();
    let (after, streak) = match restart_decision {
        RestartDecision::Restart { after, streak } => (Some(after.as_secs_f64()), streak),
        _ => (None, instance.restart_streak),
    };
    let (was, becomes) = transition.table();
    let job = JobId::new();
    let rows = db
        .write()
        .await?
        .query(
            "with inst as materialized (
               select i.id from instances i
               where i.id = $1 and i.host_id = $2 and i.status = $3 and i.generation = $4 and i.restart_streak = $5
                 and i.started_at is not distinct from $6
               for update),
             job as (
               insert into jobs (id, kind, tenant_id, instance_id, host_id, generation, seq, run_at)
               select $7, $8, i.tenant_id, i.id, i.host_id, i.generation, i.next_seq, now() + make_interval(secs => $9)
               from instances i join inst using (id) where $9::float8 is not null
               returning id, instance_id),
             changed as (
               update instances i set status = t.becomes, updated_at = now(), restart_streak = $10,
                 exit_code = coalesce($11, i.exit_code),
                 status_reason = case when t.becomes <> 'running' then $12::jsonb end,
                 finished_at = case when t.becomes in ('stopped', 'failed') then now() else i.finished_at end,
                 restart_count = i.restart_count + case when $9::float8 is null then 0 else 1 end,
                 next_seq = i.next_seq + case when $9::float8 is null then 0 else 1 end
               from inst, unnest($13::text[], $14::text[]) as t (was, becomes)
               where i.id = inst.id and t.was = i.status
               returning i.tenant_id, i.id, i.status),
             event as (
               insert into events (tenant_id, instance_id, kind, detail)
               select tenant_id, id, 'instance.' || status, coalesce($12::jsonb, '{}') from changed)
             select 1 from changed",
            &[
                &instance.id.uuid(),
                &host.uuid(),
                &instance.status,
                &instance.generation,
                &instance.restart_streak,
                &instance.started_at,
                &job.uuid(),
                &JobKind::Start.as_str(),
                &after,
                &streak,
                &exit_code,
                &code.map(|code| json!({"code": code, "detail": detail})),
                &was,
                &becomes,
            ],
        )
        .await?;
    Ok((!rows.is_empty()).then_some(after.map(|_| job)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::instances::RestartPolicy;

    const SECOND: Duration = Duration::from_secs(1);

    fn ended(exit_code: i64) -> Observation {
        Observation::Ended { exit_code, oom_killed: false }
    }

    #[test]
    fn the_policy_decides_whether_an_ended_process_starts_again() {
        let after_first = RestartDecision::Restart { after: SECOND, streak: 1 };
        for (policy, exit_code, expected) in [
            ("no", 1, RestartDecision::Stopped),
            ("on_failure", 0, RestartDecision::Stopped),
            ("on_failure", 1, after_first),
            ("always", 0, after_first),
        ] {
            assert_eq!(restart_decision(ended(exit_code), policy, 0, SECOND, SECOND), expected, "{policy} {exit_code}");
        }
        assert_eq!(restart_decision(Observation::Running, "no", 3, SECOND, SECOND), RestartDecision::Alive);
        assert_eq!(restart_decision(Observation::Gone, "no", 0, SECOND, SECOND), RestartDecision::Stopped);
        assert_eq!(restart_decision(Observation::Gone, "on_failure", 0, SECOND, SECOND), after_first);
    }

    /// Waits rely on what `happens_by_itself` says of restart policies.
    #[test]
    fn transitions_of_a_policy_are_those_of_its_verdicts() {
        for policy in RestartPolicy::ALL {
            let seen = [ended(0), ended(1), Observation::Gone].into_iter();
            let verdicts: Vec<RestartDecision> = seen
                .flat_map(|seen| {
                    [0, CRASH_LOOP].map(|streak| restart_decision(seen, policy.as_str(), streak, SECOND, SECOND))
                })
                .collect();
            for (transition, happens) in [
                (Transition::Exited, verdicts.contains(&RestartDecision::Stopped)),
                (
                    Transition::Restarting,
                    verdicts.iter().any(|restart_decision| matches!(restart_decision, RestartDecision::Restart { .. })),
                ),
                (Transition::CrashLooped, verdicts.contains(&RestartDecision::CrashLoop)),
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
    fn pauses_double_until_it_is_given_up_unless_a_run_lasted() {
        for streak in 0..CRASH_LOOP {
            let expected = RestartDecision::Restart { after: SECOND * (1 << streak), streak: streak + 1 };
            assert_eq!(restart_decision(ended(1), "always", streak, SECOND, SECOND), expected);
        }
        assert_eq!(restart_decision(ended(1), "always", CRASH_LOOP, SECOND, SECOND), RestartDecision::CrashLoop);
        let fresh = RestartDecision::Restart { after: SECOND, streak: 1 };
        assert_eq!(restart_decision(ended(1), "always", CRASH_LOOP, LASTED, SECOND), fresh);
    }
}
