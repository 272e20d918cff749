//! Looking at containers: what the engine says, as `Observed`.
//!
//! Promises: only containers of our cluster are seen. A container that is being removed is seen until it is gone.
//! Refuses: guessing; a container without the facts that every engine gives is an error of the engine.

use bollard::{
    models::{
        ContainerInspectResponse, ContainerState as EngineState, ContainerStateStatusEnum, ContainerSummaryStateEnum,
    },
    query_parameters::{InspectContainerOptions, ListContainersOptions},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use time::OffsetDateTime;

use super::{
    client::{Engine, SHORT, within},
    error, labels,
};
use crate::{
    backend::{BackendError, ContainerState, Observed},
    core::id::{InstanceId, NetworkId},
};

/// How many containers are inspected at a time.
const AT_ONCE: usize = 8;

/// Whatever has the name or id, ours or not.
pub(super) async fn raw(engine: &Engine, name: &str) -> Result<Option<ContainerInspectResponse>, BackendError> {
    match within(SHORT, engine.docker().await?.inspect_container(name, None::<InspectContainerOptions>)).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error::status(&error) == Some(404) => Ok(None),
        Err(error) => Err(error::general(error)),
    }
}

/// The instance's container if it is ours.
pub(super) async fn one(engine: &Engine, instance: InstanceId) -> Result<Option<Observed>, BackendError> {
    let Some(found) = raw(engine, &labels::container_name(instance)).await? else { return Ok(None) };
    Ok(ours(engine, &found)?.filter(|observed| observed.instance == instance))
}

/// A container of ours, as far as one has to know it to start or remove it.
pub(super) struct Placed {
    /// The engine's id.
    pub(super) container: String,
    /// Which network it joins when it starts; `None`: none of ours.
    pub(super) network: Option<NetworkId>,
}

pub(super) async fn placed(engine: &Engine, instance: InstanceId) -> Result<Option<Placed>, BackendError> {
    let Some(found) = raw(engine, &labels::container_name(instance)).await? else { return Ok(None) };
    let ours = ours(engine, &found)?.filter(|observed| observed.instance == instance);
    let network = found.host_config.and_then(|config| labels::network_of(config.network_mode.as_deref()?));
    Ok(ours.map(|observed| Placed { container: observed.container_id, network }))
}

pub(super) async fn all(engine: &Engine) -> Result<Vec<Observed>, BackendError> {
    let options =
        ListContainersOptions { all: true, filters: Some(labels::ours(engine.cluster)), ..Default::default() };
    let found = within(SHORT, engine.docker().await?.list_containers(Some(options))).await.map_err(error::general)?;
    let mut observed = Vec::with_capacity(found.len());
    let mut ended = Vec::new();
    for container in found {
        let Some(mark) = labels::container_mark(engine.cluster, container.labels.as_ref()) else { continue };
        let id = container.id.ok_or_else(|| incomplete("id"))?;
        let state = match container.state {
            Some(ContainerSummaryStateEnum::CREATED) => ContainerState::Created,
            Some(ContainerSummaryStateEnum::RUNNING | ContainerSummaryStateEnum::PAUSED) => ContainerState::Running,
            _ => {
                // The list lacks how it ended.
                ended.push(id);
                continue;
            }
        };
        let created_at = container
            .created
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .ok_or_else(|| incomplete("creation time"))?;
        let (instance, generation) = (mark.instance, mark.generation);
        observed.push(Observed { instance, generation, container_id: id, state, created_at });
    }
    let looks = stream::iter(ended).map(|id| async move { raw(engine, &id).await });
    let ended: Vec<_> = looks.buffer_unordered(AT_ONCE).try_collect().await?;
    for container in ended.into_iter().flatten() {
        observed.extend(ours(engine, &container)?);
    }
    Ok(observed)
}

/// `None`: not ours.
pub(super) fn ours(engine: &Engine, found: &ContainerInspectResponse) -> Result<Option<Observed>, BackendError> {
    let labels = found.config.as_ref().and_then(|config| config.labels.as_ref());
    let Some(mark) = labels::container_mark(engine.cluster, labels) else { return Ok(None) };
    Ok(Some(Observed {
        instance: mark.instance,
        generation: mark.generation,
        container_id: found.id.clone().ok_or_else(|| incomplete("id"))?,
        state: state(found.state.as_ref().ok_or_else(|| incomplete("state"))?),
        created_at: found.created.ok_or_else(|| incomplete("creation time"))?,
    }))
}

fn state(state: &EngineState) -> ContainerState {
    if state.status == Some(ContainerStateStatusEnum::CREATED) {
        // Also after a start that failed: its process never ran.
        ContainerState::Created
    } else if state.running == Some(true) {
        ContainerState::Running
    } else {
        ContainerState::Exited {
            exit_code: state.exit_code.unwrap_or_default(),
            oom_killed: state.oom_killed.unwrap_or_default(),
        }
    }
}

pub(super) fn incomplete(what: &str) -> BackendError {
    BackendError::Unavailable(format!("the engine described a container without its {what}"))
}
