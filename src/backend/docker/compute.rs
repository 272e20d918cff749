//! Runs containers in a Docker engine.
//!
//! `create` also creates the network and holds its lock, so that the `release_network` of another instance cannot
//! remove it in between. Once a container is recognised as this cluster's, it is addressed by the engine's id: an
//! operation finds it after a rename, and never acts on another container that takes its name meanwhile. A container of
//! our name that is not this cluster's is never touched: `create` fails with `NameConflict`, and to the other
//! operations it does not exist.

use std::{pin::pin, sync::Arc, time::Duration};

use bollard::{
    models::{ContainerCreateBody, ContainerInspectResponse, ContainerStateStatusEnum},
    query_parameters::{CreateContainerOptions, RemoveContainerOptions, StartContainerOptions, StopContainerOptions},
};
use futures_util::{future, stream::BoxStream};
use tokio::{
    sync::{MutexGuard, RwLockReadGuard, SemaphorePermit},
    time::{self, Instant},
};

use super::{
    bridge,
    client::{Engine, LONG_CALL_TIMEOUT, within},
    error, events, image,
    inspect::{self, ContainerRef},
    labels,
    locks::NetworkLock,
    network::DockerNetwork,
    registry::Registries,
    spec,
};
use crate::{
    backend::{
        BackendError, Compute, Container, ContainerChange, ContainerSpec, ContainerState, NetworkAttachment,
        NetworkPlan, Progress,
    },
    core::id::{ClusterId, InstanceId},
};

/// How often `create` tries again while a container that is being removed has the name, or the network goes away.
const CREATE_ATTEMPTS_MAX: u32 = 10;
/// The pause before a call that conflicts with another one is tried again.
const CONFLICT_RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// How long a removal may take that another process has begun.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(15);

/// How the removal of a container treats its anonymous volumes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Volumes {
    Keep,
    Remove,
}

/// The containers of a Docker engine.
#[derive(Clone)]
pub struct DockerCompute {
    engine: Arc<Engine>,
    registries: Registries,
}

impl DockerCompute {
    /// Returns a backend that connects to the engine at the first call. `docker_host`: the engine's address; `None` is
    /// the usual socket.
    ///
    /// # Errors
    /// `Refused` for a scheme that is not supported.
    pub fn connect(docker_host: Option<&str>, cluster: ClusterId) -> Result<Self, BackendError> {
        Ok(Self { engine: Arc::new(Engine::new(docker_host, cluster)?), registries: Registries::default() })
    }

    /// Allows pulls from these registries, each `host` or `host:port` as images name it, whatever their addresses.
    #[must_use]
    pub fn allowing(self, registries: &[String]) -> Self {
        Self { registries: registries.into(), ..self }
    }

    /// Returns the networks of the same engine. The two share their locks, so a process should have one pair.
    pub fn network(&self) -> DockerNetwork {
        DockerNetwork { engine: Arc::clone(&self.engine) }
    }

    /// Returns the engine's version.
    ///
    /// # Errors
    /// `Unavailable` when the engine does not answer.
    pub async fn version(&self) -> Result<String, BackendError> {
        self.engine.version().await
    }

    async fn start_permit(&self) -> Result<SemaphorePermit<'_>, BackendError> {
        self.engine.start_permits.acquire().await.map_err(|_| BackendError::Unavailable("shutting down".into()))
    }

    /// Creates the network if it does not exist. It is not removed while the guard is held.
    async fn ensure_and_lock_network<'a>(
        &self,
        lock: &'a NetworkLock,
        plan: &NetworkPlan,
    ) -> Result<RwLockReadGuard<'a, ()>, BackendError> {
        for _ in 0..CREATE_ATTEMPTS_MAX {
            let shared = lock.existence.read().await;
            if bridge::exists(&self.engine, plan).await? {
                return Ok(shared);
            }
            drop(shared);
            let _exclusive = lock.existence.write().await;
            bridge::ensure(&self.engine, plan).await?;
        }
        Err(BackendError::Unavailable(
            format!("network {} is removed by other processes again and again", plan.id).into(),
        ))
    }

    /// Creates the container and returns its id; `None`: the name is taken.
    async fn try_create(
        &self,
        container_spec: &ContainerSpec,
        attachment: &NetworkAttachment,
    ) -> Result<Option<String>, BackendError> {
        let body = spec::body(self.engine.cluster, container_spec, attachment)
            .map_err(|error| error::unavailable(error.into()))?;
        let body = body.to_string();
        // bollard's type lacks a field that we need (`spec::body`), so the request's body is replaced before it is
        // sent.
        let docker = self.engine.docker().await?.clone();
        let docker =
            docker.with_request_modifier(move |request| request.map(|_| bollard::body_full(body.clone().into())));
        let name = Some(labels::container_name(container_spec.instance));
        let options = CreateContainerOptions { name, ..Default::default() };
        let _permit = self.start_permit().await?;
        match within(LONG_CALL_TIMEOUT, docker.create_container(Some(options), ContainerCreateBody::default())).await {
            Ok(created) => Ok(Some(created.id)),
            Err(error) if error::status(&error) == Some(409) => Ok(None),
            Err(error) => Err(error::of_create(error)),
        }
    }

    /// Returns whether a container that is not this instance's has the name.
    async fn has_name_conflict(&self, name: &str, instance: InstanceId) -> Result<bool, BackendError> {
        let Some(response) = inspect::inspect_any(&self.engine, name).await? else { return Ok(false) };
        Ok(inspect::to_container(&self.engine, &response)?.is_none_or(|container| container.instance != instance))
    }

    fn network_lock(&self, container: &ContainerRef) -> Option<Arc<NetworkLock>> {
        container.network.map(|network| self.engine.network_locks.get(network))
    }

    async fn remove_container(&self, container: &ContainerRef, volumes: Volumes) -> Result<(), BackendError> {
        let lock = self.network_lock(container);
        let _leaving = lock_endpoints(lock.as_deref()).await;
        let v = volumes == Volumes::Remove;
        let options = || Some(RemoveContainerOptions { v, force: true, ..Default::default() });
        let docker = self.engine.docker().await?;
        let deadline = Instant::now() + REMOVAL_TIMEOUT;
        loop {
            match within(LONG_CALL_TIMEOUT, docker.remove_container(&container.id, options())).await {
                Ok(()) => return Ok(()),
                Err(error) => match error::status(&error) {
                    Some(404) => return Ok(()),
                    // Another process is removing it. The removal is complete when the container is gone.
                    Some(409) if Instant::now() < deadline => time::sleep(CONFLICT_RETRY_INTERVAL).await,
                    Some(409) => return Err(error::unavailable(error)),
                    _ => return Err(error::from_response(error)),
                },
            }
        }
    }
}

impl Compute for DockerCompute {
    async fn ensure_image(&self, image: &str, progress: Progress<'_>) -> Result<(), BackendError> {
        image::ensure(&self.engine, &self.registries, image, progress).await
    }

    async fn create(
        &self,
        container_spec: &ContainerSpec,
        attachment: &NetworkAttachment,
    ) -> Result<String, BackendError> {
        let lock = self.engine.network_locks.get(attachment.network.id);
        let _shared = self.ensure_and_lock_network(&lock, &attachment.network).await?;
        let name = labels::container_name(container_spec.instance);
        for _ in 0..CREATE_ATTEMPTS_MAX {
            if let Some(existing) = inspect::find(&self.engine, container_spec.instance).await? {
                if matches_spec(&self.engine, &existing.response, container_spec, attachment) {
                    return Ok(existing.container.container_id);
                }
                // Its volumes may hold data that the owner still needs.
                self.remove_container(&existing.to_ref(), Volumes::Keep).await?;
            }
            if let Some(id) = self.try_create(container_spec, attachment).await? {
                return Ok(id);
            }
            // The name is taken: by a container that another process has created just now, or by one that is being
            // removed.
            if self.has_name_conflict(&name, container_spec.instance).await? {
                return Err(BackendError::NameConflict(name.into()));
            }
            time::sleep(CONFLICT_RETRY_INTERVAL).await;
        }
        Err(BackendError::Unavailable(format!("the name {name} does not become free").into()))
    }

    async fn start(&self, instance: InstanceId) -> Result<(), BackendError> {
        let Some(existing) = inspect::find(&self.engine, instance).await? else {
            return Err(BackendError::Unavailable(format!("the container of {instance} is gone").into()));
        };
        let container = existing.to_ref();
        let docker = self.engine.docker().await?;
        let lock = self.network_lock(&container);
        let joining = lock_endpoints(lock.as_deref()).await;
        let _permit = self.start_permit().await?;
        let call = within(LONG_CALL_TIMEOUT, docker.start_container(&container.id, None::<StartContainerOptions>));
        let mut call = pin!(call);
        // Joining the network is the first and a small part of a start. After it the next container of this network can
        // join.
        tokio::select! {
            ended = &mut call => return ended.map_err(error::of_start),
            () = bridge::wait_until_joined(&self.engine, &container) => drop(joining),
        }
        // bollard reports 304 (it runs already) as a success.
        call.await.map_err(error::of_start)
    }

    async fn stop(&self, instance: InstanceId, grace: Duration) -> Result<(), BackendError> {
        let limit = grace + LONG_CALL_TIMEOUT;
        let seconds = i32::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i32::MAX);
        let docker = self.engine.docker().await?.clone().with_timeout(limit);
        let stops = inspect::all_of_instance(&self.engine, instance).await?.into_iter().map(|container| {
            let options = StopContainerOptions { t: Some(seconds), signal: None };
            let docker = &docker;
            async move {
                match within(limit, docker.stop_container(&container.id, Some(options))).await {
                    Err(error) if error::status(&error) != Some(404) => Err(error::from_response(error)),
                    _ => Ok(()),
                }
            }
        });
        future::try_join_all(stops).await.map(drop)
    }

    async fn remove(&self, instance: InstanceId) -> Result<(), BackendError> {
        for container in inspect::all_of_instance(&self.engine, instance).await? {
            self.remove_container(&container, Volumes::Remove).await?;
        }
        Ok(())
    }

    async fn discard(&self, container: &Container) -> Result<(), BackendError> {
        let id = &container.container_id;
        let Some(existing) = inspect::find_by_name(&self.engine, container.instance, id).await? else { return Ok(()) };
        let never_ran = existing.container.state == ContainerState::Created;
        self.remove_container(&existing.to_ref(), if never_ran { Volumes::Remove } else { Volumes::Keep }).await
    }

    async fn inspect(&self, instance: InstanceId) -> Result<Option<Container>, BackendError> {
        let existing = inspect::find(&self.engine, instance).await?;
        // A container that the engine is removing, or failed to remove, cannot be started: it counts as gone.
        let existing = existing.filter(|existing| !is_being_removed(&existing.response));
        Ok(existing.map(|existing| existing.container))
    }

    async fn list(&self) -> Result<Vec<Container>, BackendError> {
        inspect::list(&self.engine).await
    }

    fn changes(&self) -> BoxStream<'static, Result<ContainerChange, BackendError>> {
        events::changes(Arc::clone(&self.engine))
    }
}

/// Returns the lock under which a container joins or leaves its network. Returns `None` after a minute, because the
/// engine hangs or many containers wait: the wrong count that the lock prevents (`locks`) does less harm than a longer
/// wait.
async fn lock_endpoints(network: Option<&NetworkLock>) -> Option<MutexGuard<'_, ()>> {
    time::timeout(LONG_CALL_TIMEOUT, network?.endpoints.lock()).await.ok()
}

/// Returns whether the engine is removing the container, or has tried to and failed.
fn is_being_removed(response: &ContainerInspectResponse) -> bool {
    let status = response.state.as_ref().and_then(|state| state.status);
    matches!(status, Some(ContainerStateStatusEnum::REMOVING | ContainerStateStatusEnum::DEAD))
}

/// Returns whether an existing container is the one that `create` would make, and is not being removed.
fn matches_spec(
    engine: &Engine,
    response: &ContainerInspectResponse,
    container_spec: &ContainerSpec,
    attachment: &NetworkAttachment,
) -> bool {
    if is_being_removed(response) {
        return false;
    }
    let labels = response.config.as_ref().and_then(|config| config.labels.as_ref());
    labels::parse_container_labels(engine.cluster, labels).is_some_and(|labels| {
        labels.generation == container_spec.generation && labels.spec_hash == spec::hash(container_spec, attachment)
    })
}
