//! Runs containers in a Docker engine.
//!
//! Promises: what `Compute` does. `create` makes sure of the network too, so that another instance's `release_network`
//! in between does no harm. Containers are addressed by the engine's id once they are known to be ours, so that one
//! which takes the name meanwhile is not hit, and one which was renamed is.
//! Refuses: touching a container of our name that is not ours: `create` answers `NameConflict`, all else sees nothing.

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
    client::{Engine, LONG, within},
    error, events, image, labels,
    locks::NetworkLock,
    network::DockerNetwork,
    observe::{self, Placed},
    registry::Registries,
    spec,
};
use crate::{
    backend::{
        BackendError, Changed, Compute, ContainerSpec, ContainerState, NetworkAttachment, NetworkPlan, Observed,
        Progress,
    },
    core::id::{ClusterId, InstanceId},
};

/// How often `create` looks again when the name is taken by a container that is just going.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);
/// How long a removal that somebody else began may take.
const REMOVAL: Duration = Duration::from_secs(15);

/// What becomes of the anonymous volumes of a container that is removed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Volumes {
    Keep,
    Remove,
}

#[derive(Clone)]
pub struct DockerCompute {
    engine: Arc<Engine>,
    registries: Registries,
}

impl DockerCompute {
    /// Connects at the first use; `None` is the engine's usual socket.
    pub fn connect(docker_host: Option<&str>, cluster: ClusterId) -> Result<Self, BackendError> {
        Ok(Self { engine: Arc::new(Engine::new(docker_host, cluster)?), registries: Registries::default() })
    }

    /// Also pulls from these registries, each `host` or `host:port` as images name it, wherever they are.
    #[must_use]
    pub fn allowing(self, registries: &[String]) -> Self {
        Self { registries: registries.into(), ..self }
    }

    /// The networks of the same engine. The two share locks, so there should be one pair per process.
    pub fn network(&self) -> DockerNetwork {
        DockerNetwork { engine: Arc::clone(&self.engine) }
    }

    /// The engine's version; proves that it answers.
    pub async fn version(&self) -> Result<String, BackendError> {
        self.engine.version().await
    }

    async fn turn(&self) -> Result<SemaphorePermit<'_>, BackendError> {
        self.engine.starts.acquire().await.map_err(|_| BackendError::Unavailable("shutting down".into()))
    }

    /// The network, and the guarantee that it stays while the guard is held.
    async fn hold_network<'a>(
        &self,
        lock: &'a NetworkLock,
        plan: &NetworkPlan,
    ) -> Result<RwLockReadGuard<'a, ()>, BackendError> {
        for _ in 0..ATTEMPTS {
            let using = lock.existence.read().await;
            if bridge::exists(&self.engine, plan).await? {
                return Ok(using);
            }
            drop(using);
            let _changing = lock.existence.write().await;
            bridge::ensure(&self.engine, plan).await?;
        }
        Err(BackendError::Unavailable(format!("network {} keeps going away", plan.id).into()))
    }

    /// `None`: the name is taken.
    async fn new_container(
        &self,
        container_spec: &ContainerSpec,
        attachment: &NetworkAttachment,
    ) -> Result<Option<String>, BackendError> {
        let body = spec::body(self.engine.cluster, container_spec, attachment)
            .map_err(|error| error::unavailable(error.into()))?;
        let body = body.to_string();
        // bollard's type lacks a field that we need, so the body is exchanged on its way out.
        let docker = self.engine.docker().await?.clone();
        let docker =
            docker.with_request_modifier(move |request| request.map(|_| bollard::body_full(body.clone().into())));
        let name = Some(labels::container_name(container_spec.instance));
        let options = CreateContainerOptions { name, ..Default::default() };
        let _turn = self.turn().await?;
        match within(LONG, docker.create_container(Some(options), ContainerCreateBody::default())).await {
            Ok(created) => Ok(Some(created.id)),
            Err(error) if error::status(&error) == Some(409) => Ok(None),
            Err(error) => Err(error::creating(error)),
        }
    }

    /// Whether a container that is not this instance's has the name.
    async fn is_foreign(&self, name: &str, instance: InstanceId) -> Result<bool, BackendError> {
        let Some(found) = observe::raw(&self.engine, name).await? else { return Ok(false) };
        Ok(observe::ours(&self.engine, &found)?.is_none_or(|observed| observed.instance != instance))
    }

    fn lock_of(&self, found: &Placed) -> Option<Arc<NetworkLock>> {
        found.network.map(|network| self.engine.networks.of(network))
    }

    async fn remove_container(&self, found: &Placed, volumes: Volumes) -> Result<(), BackendError> {
        let lock = self.lock_of(found);
        let _leaving = endpoints(lock.as_deref()).await;
        let v = volumes == Volumes::Remove;
        let options = || Some(RemoveContainerOptions { v, force: true, ..Default::default() });
        let docker = self.engine.docker().await?;
        let deadline = Instant::now() + REMOVAL;
        loop {
            match within(LONG, docker.remove_container(&found.container, options())).await {
                Ok(()) => return Ok(()),
                Err(error) => match error::status(&error) {
                    Some(404) => return Ok(()),
                    // Somebody else is removing it: gone is what counts.
                    Some(409) if Instant::now() < deadline => time::sleep(PAUSE).await,
                    Some(409) => return Err(error::unavailable(error)),
                    _ => return Err(error::general(error)),
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
        let lock = self.engine.networks.of(attachment.network.id);
        let _using = self.hold_network(&lock, &attachment.network).await?;
        let name = labels::container_name(container_spec.instance);
        for _ in 0..ATTEMPTS {
            if let Some(found) = observe::found(&self.engine, container_spec.instance).await? {
                if is_equal(&self.engine, &found.raw, container_spec, attachment) {
                    return Ok(found.observed.container_id);
                }
                // Its volumes may hold what an owner still wants: they outlive it.
                self.remove_container(&found.placed(), Volumes::Keep).await?;
            }
            if let Some(id) = self.new_container(container_spec, attachment).await? {
                return Ok(id);
            }
            // Made by another process, or not yet free after a removal: look again.
            if self.is_foreign(&name, container_spec.instance).await? {
                return Err(BackendError::NameConflict(name.into()));
            }
            time::sleep(PAUSE).await;
        }
        Err(BackendError::Unavailable(format!("the name {name} does not become free").into()))
    }

    async fn start(&self, instance: InstanceId) -> Result<(), BackendError> {
        let Some(found) = observe::found(&self.engine, instance).await? else {
            return Err(BackendError::Unavailable(format!("the container of {instance} is gone").into()));
        };
        let found = found.placed();
        let docker = self.engine.docker().await?;
        let lock = self.lock_of(&found);
        let joining = endpoints(lock.as_deref()).await;
        let _turn = self.turn().await?;
        let call = within(LONG, docker.start_container(&found.container, None::<StartContainerOptions>));
        let mut call = pin!(call);
        // Joining is the first and a small part of it: then the next one of this network can begin.
        tokio::select! {
            ended = &mut call => return ended.map_err(error::starting),
            () = bridge::joined(&self.engine, &found) => drop(joining),
        }
        // 304, running already, is success to bollard.
        call.await.map_err(error::starting)
    }

    async fn stop(&self, instance: InstanceId, grace: Duration) -> Result<(), BackendError> {
        let limit = grace + LONG;
        let seconds = i32::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i32::MAX);
        let docker = self.engine.docker().await?.clone().with_timeout(limit);
        let stops = observe::every(&self.engine, instance).await?.into_iter().map(|found| {
            let options = StopContainerOptions { t: Some(seconds), signal: None };
            let docker = &docker;
            async move {
                match within(limit, docker.stop_container(&found.container, Some(options))).await {
                    Err(error) if error::status(&error) != Some(404) => Err(error::general(error)),
                    _ => Ok(()),
                }
            }
        });
        future::try_join_all(stops).await.map(drop)
    }

    async fn remove(&self, instance: InstanceId) -> Result<(), BackendError> {
        for found in observe::every(&self.engine, instance).await? {
            self.remove_container(&found, Volumes::Remove).await?;
        }
        Ok(())
    }

    async fn discard(&self, container: &Observed) -> Result<(), BackendError> {
        let id = &container.container_id;
        let Some(found) = observe::one(&self.engine, container.instance, id).await? else { return Ok(()) };
        let never_ran = found.observed.state == ContainerState::Created;
        self.remove_container(&found.placed(), if never_ran { Volumes::Remove } else { Volumes::Keep }).await
    }

    async fn inspect(&self, instance: InstanceId) -> Result<Option<Observed>, BackendError> {
        let found = observe::found(&self.engine, instance).await?;
        // One that the engine removes, or failed to remove, cannot be started: it is as good as gone.
        Ok(found.filter(|found| !is_leaving(&found.raw)).map(|found| found.observed))
    }

    async fn list(&self) -> Result<Vec<Observed>, BackendError> {
        observe::all(&self.engine).await
    }

    fn changes(&self) -> BoxStream<'static, Result<Changed, BackendError>> {
        events::changes(Arc::clone(&self.engine))
    }
}

/// Held while a container joins or leaves the network. `None` after a minute, be it that the engine hangs or that many are
/// before: the count is worth no more than that.
async fn endpoints(network: Option<&NetworkLock>) -> Option<MutexGuard<'_, ()>> {
    time::timeout(LONG, network?.endpoints.lock()).await.ok()
}

/// Whether the engine is removing it, or has tried to and failed.
fn is_leaving(found: &ContainerInspectResponse) -> bool {
    let status = found.state.as_ref().and_then(|state| state.status);
    matches!(status, Some(ContainerStateStatusEnum::REMOVING | ContainerStateStatusEnum::DEAD))
}

/// Whether it is what `create` would make, and stays.
fn is_equal(
    engine: &Engine,
    found: &ContainerInspectResponse,
    container_spec: &ContainerSpec,
    attachment: &NetworkAttachment,
) -> bool {
    if is_leaving(found) {
        return false;
    }
    let labels = found.config.as_ref().and_then(|config| config.labels.as_ref());
    labels::container_mark(engine.cluster, labels).is_some_and(|mark| {
        mark.generation == container_spec.generation && mark.spec == spec::hash(container_spec, attachment)
    })
}
