//! The record of a simulated container, as its file holds it. It leaves out the environment, which may hold secrets.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    backend::{Attempt, Container, ContainerSpec, ContainerState, NetworkAttachment},
    core::id::{HostId, InstanceId, JobId, NetworkId},
};

/// A simulated container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) instance: InstanceId,
    pub(super) generation: i64,
    pub(super) job: JobId,
    pub(super) token: i64,
    /// Not in files of a release that did not write it.
    #[serde(default)]
    host: Option<HostId>,
    pub(super) network: NetworkId,
    pub(super) container_id: String,
    image: String,
    command: Option<Vec<String>>,
    pub(super) state: State,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

/// The state of a simulated process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Created,
    Running,
    Exited { exit_code: i64 },
}

impl Record {
    /// Returns a container that has been created, but not started.
    pub(super) fn new(container_spec: &ContainerSpec, attachment: &NetworkAttachment, container_id: String) -> Self {
        Self {
            instance: container_spec.instance,
            generation: container_spec.generation,
            job: container_spec.made_by.job,
            token: container_spec.made_by.token,
            host: Some(container_spec.host),
            network: attachment.network.id,
            container_id,
            image: container_spec.image.clone(),
            command: container_spec.command.clone(),
            state: State::Created,
            created_at: OffsetDateTime::now_utc(),
        }
    }

    /// Returns the state that a start leads to; `None`: it cannot be started.
    pub(super) fn state_after_start(&self) -> Option<State> {
        let program = self.program();
        if program.starts_with("/no/such") {
            return None;
        }
        Some(match program.rsplit('/').next() {
            Some("false") => State::Exited { exit_code: 1 },
            Some("true") => State::Exited { exit_code: 0 },
            _ => State::Running,
        })
    }

    /// Returns the first word of its command.
    pub(super) fn program(&self) -> &str {
        self.command.as_ref().and_then(|command| command.first()).map_or("", String::as_str)
    }

    /// Returns the container as the `Compute` trait describes it.
    pub(super) fn into_container(self) -> Container {
        let state = match self.state {
            State::Created => ContainerState::Created,
            State::Running => ContainerState::Running,
            State::Exited { exit_code } => ContainerState::Exited { exit_code, oom_killed: false },
        };
        Container {
            instance: self.instance,
            generation: self.generation,
            made_by: Some(Attempt { job: self.job, token: self.token }),
            host: self.host,
            container_id: self.container_id,
            state,
            created_at: self.created_at,
        }
    }
}
