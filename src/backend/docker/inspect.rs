//! Finding and describing this cluster's containers.
//!
//! A container is recognised by its labels: one that was renamed is found, and one of another cluster that took the
//! name is not. A container that is being removed is found until it is gone. Where the engine leaves out a field that
//! every engine gives, that is an error of the engine; nothing is guessed.

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
    client::{Engine, SHORT_CALL_TIMEOUT, within},
    error,
    labels::{self, ContainerLabels},
};
use crate::{
    backend::{BackendError, Container, ContainerState},
    core::id::{InstanceId, NetworkId},
};

/// How many containers are inspected at a time.
const CONCURRENT_INSPECTS_MAX: usize = 8;

/// Inspects the container with this name or id, whichever cluster it belongs to.
pub(super) async fn inspect_any(engine: &Engine, name: &str) -> Result<Option<ContainerInspectResponse>, BackendError> {
    match within(SHORT_CALL_TIMEOUT, engine.docker().await?.inspect_container(name, None::<InspectContainerOptions>))
        .await
    {
        Ok(response) => Ok(Some(response)),
        Err(error) if error::status(&error) == Some(404) => Ok(None),
        Err(error) => Err(error::from_response(error)),
    }
}

/// A container of this cluster, with the engine's full description.
pub(super) struct Inspected {
    /// The container.
    pub(super) container: Container,
    /// The engine's description of it.
    pub(super) response: ContainerInspectResponse,
}

/// Finds the container of an instance: the one with the instance's name, else the newest that carries its label. The
/// lookup by name costs the engine least, and nearly always finds it.
pub(super) async fn find(engine: &Engine, instance: InstanceId) -> Result<Option<Inspected>, BackendError> {
    if let Some(inspected) = find_by_name(engine, instance, &labels::container_name(instance)).await? {
        return Ok(Some(inspected));
    }
    let listed = summaries(engine, labels::instance_filter(engine.cluster, instance)).await?;
    let Some((_, newest)) = one_per_instance(engine, listed).pop() else { return Ok(None) };
    find_by_name(engine, instance, &newest.id.ok_or_else(|| missing_field("id"))?).await
}

/// Inspects the container with this name or id; `None`: it does not exist or does not belong to the instance.
pub(super) async fn find_by_name(
    engine: &Engine,
    instance: InstanceId,
    name: &str,
) -> Result<Option<Inspected>, BackendError> {
    let Some(response) = inspect_any(engine, name).await? else { return Ok(None) };
    let container = to_container(engine, &response)?.filter(|container| container.instance == instance);
    Ok(container.map(|container| Inspected { container, response }))
}

/// A container of this cluster, with what is needed to start, stop or remove it.
pub(super) struct ContainerRef {
    /// The engine's id.
    pub(super) id: String,
    /// The network that it joins when it starts; `None`: none of this cluster.
    pub(super) network: Option<NetworkId>,
}

impl Inspected {
    /// Returns the reference of the container.
    pub(super) fn to_ref(&self) -> ContainerRef {
        let mode = self.response.host_config.as_ref().and_then(|config| config.network_mode.as_deref());
        ContainerRef { id: self.container.container_id.clone(), network: mode.and_then(labels::parse_network_name) }
    }
}

/// Returns all containers that carry the instance's label, whatever their names.
pub(super) async fn all_of_instance(engine: &Engine, instance: InstanceId) -> Result<Vec<ContainerRef>, BackendError> {
    let mut listed = summaries(engine, labels::instance_filter(engine.cluster, instance)).await?;
    listed.retain(|summary| labels::parse_container_labels(engine.cluster, summary.labels.as_ref()).is_some());
    let to_ref = |summary: ContainerSummary| {
        let mode = summary.host_config.and_then(|config| config.network_mode);
        let network = mode.as_deref().and_then(labels::parse_network_name);
        Ok(ContainerRef { id: summary.id.ok_or_else(|| missing_field("id"))?, network })
    };
    listed.into_iter().map(to_ref).collect()
}

async fn summaries(
    engine: &Engine,
    filters: HashMap<String, Vec<String>>,
) -> Result<Vec<ContainerSummary>, BackendError> {
    let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
    within(SHORT_CALL_TIMEOUT, engine.docker().await?.list_containers(Some(options)))
        .await
        .map_err(error::from_response)
}

/// Returns the containers of this cluster, one for each instance.
pub(super) async fn list(engine: &Engine) -> Result<Vec<Container>, BackendError> {
    let listed = one_per_instance(engine, summaries(engine, labels::cluster_filter(engine.cluster)).await?);
    let mut containers = Vec::with_capacity(listed.len());
    let mut ended = Vec::new();
    for (labels, summary) in listed {
        let id = summary.id.ok_or_else(|| missing_field("id"))?;
        let state = match summary.state {
            Some(ContainerSummaryStateEnum::CREATED) => ContainerState::Created,
            Some(ContainerSummaryStateEnum::RUNNING | ContainerSummaryStateEnum::PAUSED) => ContainerState::Running,
            _ => {
                // A summary has no exit code.
                ended.push(id);
                continue;
            }
        };
        let created_at = summary
            .created
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .ok_or_else(|| missing_field("creation time"))?;
        containers.push(Container {
            instance: labels.instance,
            generation: labels.generation,
            made_by: labels.made_by,
            host: labels.host,
            container_id: id,
            state,
            created_at,
        });
    }
    let inspects = stream::iter(ended).map(|id| async move { inspect_any(engine, &id).await });
    let ended: Vec<_> = inspects.buffer_unordered(CONCURRENT_INSPECTS_MAX).try_collect().await?;
    for response in ended.into_iter().flatten() {
        containers.extend(to_container(engine, &response)?);
    }
    Ok(containers)
}

/// Selects this cluster's containers, one for each instance: the one with the instance's name, else the newest.
fn one_per_instance(engine: &Engine, listed: Vec<ContainerSummary>) -> Vec<(ContainerLabels, ContainerSummary)> {
    let parse = |summary: &ContainerSummary| labels::parse_container_labels(engine.cluster, summary.labels.as_ref());
    let mut labelled: Vec<_> =
        listed.into_iter().filter_map(|summary| parse(&summary).map(|labels| (labels, summary))).collect();
    labelled.sort_by_cached_key(|(labels, summary)| {
        // The engine puts a slash before names.
        let name = format!("/{}", labels::container_name(labels.instance));
        let has_name = summary.names.as_ref().is_some_and(|names| names.contains(&name));
        Reverse((has_name, summary.created))
    });
    let mut instances = HashSet::with_capacity(labelled.len());
    labelled.retain(|(labels, _)| instances.insert(labels.instance));
    labelled
}

/// Converts the engine's description of a container; `None`: it is not this cluster's.
pub(super) fn to_container(
    engine: &Engine,
    response: &ContainerInspectResponse,
) -> Result<Option<Container>, BackendError> {
    let labels = response.config.as_ref().and_then(|config| config.labels.as_ref());
    let Some(labels) = labels::parse_container_labels(engine.cluster, labels) else { return Ok(None) };
    Ok(Some(Container {
        instance: labels.instance,
        generation: labels.generation,
        made_by: labels.made_by,
        host: labels.host,
        container_id: response.id.clone().ok_or_else(|| missing_field("id"))?,
        state: state(response.state.as_ref().ok_or_else(|| missing_field("state"))?),
        created_at: response.created.ok_or_else(|| missing_field("creation time"))?,
    }))
}

fn state(state: &EngineState) -> ContainerState {
    if state.status == Some(ContainerStateStatusEnum::CREATED) {
        // A start that failed leaves this status too: the process never ran.
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

fn missing_field(field: &str) -> BackendError {
    BackendError::Unavailable(format!("the engine described a container without its {field}").into())
}
