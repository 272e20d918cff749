//! Looking at containers: what the engine says, as `Observed`.
//!
//! Promises: only containers of our cluster are seen, and by their labels: one that was renamed is found, one that took the
//! name is not mistaken for it. A container that is being removed is seen until it is gone.
//! Refuses: guessing; a container without the facts that every engine gives is an error of the engine.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
};

use bollard::{
    models::{
        ContainerInspectResponse, ContainerState as EngineState, ContainerStateStatusEnum, ContainerSummary,
        ContainerSummaryStateEnum,
    },
    query_parameters::{InspectContainerOptions, ListContainersOptions},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use time::OffsetDateTime;

use super::{
    client::{Engine, SHORT, within},
    error,
    labels::{self, Mark},
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

/// The instance's container, and what is to be known of it.
pub(super) struct Found {
    pub(super) observed: Observed,
    pub(super) raw: ContainerInspectResponse,
}

/// The one with our name, else the newest that carries the instance. Asking by name costs the engine least, and nearly
/// always answers.
pub(super) async fn found(engine: &Engine, instance: InstanceId) -> Result<Option<Found>, BackendError> {
    if let Some(found) = one(engine, instance, &labels::container_name(instance)).await? {
        return Ok(Some(found));
    }
    let listed = list(engine, labels::ours_of(engine.cluster, instance)).await?;
    let Some((_, newest)) = preferred(engine, listed).pop() else { return Ok(None) };
    one(engine, instance, &newest.id.ok_or_else(|| incomplete("id"))?).await
}

/// The container of this name or id, if it is the instance's.
pub(super) async fn one(engine: &Engine, instance: InstanceId, name: &str) -> Result<Option<Found>, BackendError> {
    let Some(raw) = raw(engine, name).await? else { return Ok(None) };
    let observed = ours(engine, &raw)?.filter(|observed| observed.instance == instance);
    Ok(observed.map(|observed| Found { observed, raw }))
}

/// A container of ours, as far as one has to know it to start, stop or remove it.
pub(super) struct Placed {
    /// The engine's id.
    pub(super) container: String,
    /// Which network it joins when it starts; `None`: none of ours.
    pub(super) network: Option<NetworkId>,
}

impl Found {
    pub(super) fn placed(&self) -> Placed {
        let mode = self.raw.host_config.as_ref().and_then(|config| config.network_mode.as_deref());
        Placed { container: self.observed.container_id.clone(), network: mode.and_then(labels::network_of) }
    }
}

/// All containers that carry the instance, whatever their names.
pub(super) async fn every(engine: &Engine, instance: InstanceId) -> Result<Vec<Placed>, BackendError> {
    let mut found = list(engine, labels::ours_of(engine.cluster, instance)).await?;
    found.retain(|container| labels::container_mark(engine.cluster, container.labels.as_ref()).is_some());
    let placed = |container: ContainerSummary| {
        let mode = container.host_config.and_then(|config| config.network_mode);
        let network = mode.as_deref().and_then(labels::network_of);
        Ok(Placed { container: container.id.ok_or_else(|| incomplete("id"))?, network })
    };
    found.into_iter().map(placed).collect()
}

async fn list(engine: &Engine, filters: HashMap<String, Vec<String>>) -> Result<Vec<ContainerSummary>, BackendError> {
    let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
    within(SHORT, engine.docker().await?.list_containers(Some(options))).await.map_err(error::general)
}

/// One for each instance.
pub(super) async fn all(engine: &Engine) -> Result<Vec<Observed>, BackendError> {
    let found = preferred(engine, list(engine, labels::ours(engine.cluster)).await?);
    let mut observed = Vec::with_capacity(found.len());
    let mut ended = Vec::new();
    for (mark, container) in found {
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
        observed.push(Observed {
            instance: mark.instance,
            generation: mark.generation,
            made_by: mark.made_by,
            host: mark.host,
            container_id: id,
            state,
            created_at,
        });
    }
    let looks = stream::iter(ended).map(|id| async move { raw(engine, &id).await });
    let ended: Vec<_> = looks.buffer_unordered(AT_ONCE).try_collect().await?;
    for container in ended.into_iter().flatten() {
        observed.extend(ours(engine, &container)?);
    }
    Ok(observed)
}

/// Ours; of several that carry one instance the one with our name, else the newest.
fn preferred(engine: &Engine, containers: Vec<ContainerSummary>) -> Vec<(Mark, ContainerSummary)> {
    let mark = |container: &ContainerSummary| labels::container_mark(engine.cluster, container.labels.as_ref());
    let mut ours: Vec<_> = containers.into_iter().filter_map(|one| mark(&one).map(|mark| (mark, one))).collect();
    ours.sort_by_cached_key(|(mark, container)| {
        // The engine puts a slash before names.
        let name = format!("/{}", labels::container_name(mark.instance));
        let is_named = container.names.as_ref().is_some_and(|names| names.contains(&name));
        Reverse((is_named, container.created))
    });
    let mut seen = HashSet::with_capacity(ours.len());
    ours.retain(|(mark, _)| seen.insert(mark.instance));
    ours
}

/// `None`: not ours.
pub(super) fn ours(engine: &Engine, found: &ContainerInspectResponse) -> Result<Option<Observed>, BackendError> {
    let labels = found.config.as_ref().and_then(|config| config.labels.as_ref());
    let Some(mark) = labels::container_mark(engine.cluster, labels) else { return Ok(None) };
    Ok(Some(Observed {
        instance: mark.instance,
        generation: mark.generation,
        made_by: mark.made_by,
        host: mark.host,
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
    BackendError::Unavailable(format!("the engine described a container without its {what}").into())
}
