//! The simulated containers, by the rules in `mod.rs`.
//!
//! A container of the same generation is adopted and not entered in the ledger again; one of another generation is
//! replaced. A container of another spec in the same generation is not replaced, since no caller does that.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    task,
    time::{self, Interval},
};

use super::{
    Simulation,
    network::SimulatedNetwork,
    record::{Record, State},
    state_files::StateFiles,
};
use crate::{
    backend::{BackendError, Compute, Container, ContainerChange, ContainerSpec, NetworkAttachment, Progress},
    core::id::{ClusterId, InstanceId},
};

/// The length of a message of the registry `garbled`, in bytes.
const GARBLED_LEN: usize = 3_000_000;
/// How often the directory is read for exit files of tests.
const EXIT_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// 128 + SIGTERM: the exit code of a process that was stopped.
const SIGTERM_EXIT_CODE: i64 = 143;

/// The containers of a simulated host.
#[derive(Clone)]
pub struct SimulatedCompute {
    files: Arc<StateFiles>,
}

impl SimulatedCompute {
    /// Opens the files of a cluster, and creates them if there are none.
    ///
    /// # Errors
    /// `Unavailable` when the state directory cannot be written.
    pub fn open(simulation: &Simulation, cluster: ClusterId) -> Result<Self, BackendError> {
        Ok(Self { files: Arc::new(StateFiles::open(simulation, cluster)?) })
    }

    /// Returns the networks of the same host.
    pub fn network(&self) -> SimulatedNetwork {
        SimulatedNetwork { files: Arc::clone(&self.files) }
    }

    /// Returns `simulated`: there is no engine that has a version.
    ///
    /// # Errors
    /// None; the signature is that of the other backends.
    #[allow(clippy::unused_async, reason = "all backends have the same signature")]
    pub async fn version(&self) -> Result<String, BackendError> {
        Ok("simulated".to_owned())
    }

    fn create_now(
        &self,
        container_spec: &ContainerSpec,
        attachment: &NetworkAttachment,
    ) -> Result<String, BackendError> {
        let files = &self.files;
        let _guard = files.lock();
        match files.load(container_spec.instance)? {
            Some(existing) if existing.generation == container_spec.generation => return Ok(existing.container_id),
            Some(existing) => files.remove(&existing)?,
            None if files.exists_in_another_cluster(container_spec.instance)? => {
                return Err(BackendError::NameConflict(format!("app-{}", container_spec.instance).into()));
            }
            None => {}
        }
        let record = Record::new(container_spec, attachment, format!("sim-{:016x}", files.faults.next()));
        if files.add(&record)? {
            return Ok(record.container_id);
        }
        match files.load(container_spec.instance)? {
            Some(existing) if existing.generation == container_spec.generation => Ok(existing.container_id),
            _ => Err(BackendError::Unavailable("another process changes the same container".into())),
        }
    }

    fn start_now(&self, instance: InstanceId) -> Result<(), BackendError> {
        let files = &self.files;
        let _guard = files.lock();
        let gone = || BackendError::Unavailable(format!("the container of {instance} is gone").into());
        let mut record = files.load_current(instance)?.ok_or_else(gone)?;
        if record.state == State::Running {
            return Ok(());
        }
        let refused = || BackendError::StartFailed(format!("{}: no such file or directory", record.program()).into());
        record.state = record.state_after_start().ok_or_else(refused)?;
        files.replace(&record, Some("start"))
    }

    fn stop_now(&self, instance: InstanceId) -> Result<(), BackendError> {
        let files = &self.files;
        let _guard = files.lock();
        match files.load_current(instance)? {
            Some(mut record) if record.state == State::Running => {
                record.state = State::Exited { exit_code: SIGTERM_EXIT_CODE };
                files.replace(&record, Some("stop"))
            }
            _ => Ok(()),
        }
    }

    fn remove_now(&self, instance: InstanceId) -> Result<(), BackendError> {
        self.remove_if(instance, |_| true)
    }

    fn remove_if(&self, instance: InstanceId, is_selected: impl Fn(&Container) -> bool) -> Result<(), BackendError> {
        let _guard = self.files.lock();
        match self.files.load(instance)? {
            Some(record) if is_selected(&record.clone().into_container()) => self.files.remove(&record),
            _ => Ok(()),
        }
    }
}

/// Returns the message of a registry that is broken or malicious: control characters, and megabytes of them.
fn garbled_message(image: &str) -> String {
    format!("{image}: gone\0for\r\ngood{}", "\u{1b}\0".repeat(GARBLED_LEN / 2))
}

impl Compute for SimulatedCompute {
    async fn ensure_image(&self, image: &str, progress: Progress<'_>) -> Result<(), BackendError> {
        self.files
            .faults
            .perform("ensure_image", || {
                progress(format!("{image}: simulated").into());
                match image.split_once('/').map(|(registry, _)| registry) {
                    Some("missing") => Err(BackendError::ImageNotFound(image.into())),
                    Some("unreachable") => Err(BackendError::ImagePullFailed(format!("{image}: no registry").into())),
                    Some("garbled") => {
                        progress(garbled_message(image).into());
                        Err(BackendError::ImageNotFound(garbled_message(image).into()))
                    }
                    Some("panic") => panic!("{image}: a simulated panic"),
                    _ => Ok(()),
                }
            })
            .await
    }

    async fn create(
        &self,
        container_spec: &ContainerSpec,
        attachment: &NetworkAttachment,
    ) -> Result<String, BackendError> {
        self.files.faults.perform("create", || self.create_now(container_spec, attachment)).await
    }

    async fn start(&self, instance: InstanceId) -> Result<(), BackendError> {
        self.files.faults.perform("start", || self.start_now(instance)).await
    }

    async fn stop(&self, instance: InstanceId, _grace: Duration) -> Result<(), BackendError> {
        self.files.faults.perform("stop", || self.stop_now(instance)).await
    }

    async fn remove(&self, instance: InstanceId) -> Result<(), BackendError> {
        self.files.faults.perform("remove", || self.remove_now(instance)).await
    }

    async fn discard(&self, container: &Container) -> Result<(), BackendError> {
        let is_selected = |existing: &Container| existing.container_id == container.container_id;
        self.files.faults.perform("remove", || self.remove_if(container.instance, is_selected)).await
    }

    async fn inspect(&self, instance: InstanceId) -> Result<Option<Container>, BackendError> {
        let _guard = self.files.lock();
        Ok(self.files.load_current(instance)?.map(Record::into_container))
    }

    async fn list(&self) -> Result<Vec<Container>, BackendError> {
        let files = Arc::clone(&self.files);
        let records = task::spawn_blocking(move || files.all()).await;
        let records = records.map_err(|error| BackendError::Unavailable(error.to_string().into()))??;
        Ok(records.into_iter().map(Record::into_container).collect())
    }

    fn changes(&self) -> BoxStream<'static, Result<ContainerChange, BackendError>> {
        let listener = ChangeListener {
            changes: self.files.changes.subscribe(),
            files: Arc::clone(&self.files),
            polling: time::interval(EXIT_POLL_INTERVAL),
            directory_modified: None,
        };
        stream::unfold(Some(listener), |listener| async {
            let mut listener = listener?;
            match listener.next().await {
                Ok(change) => Some((Ok(change), Some(listener))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }
}

/// Waits for changes made by this process, and polls for exit files of tests.
struct ChangeListener {
    files: Arc<StateFiles>,
    changes: broadcast::Receiver<ContainerChange>,
    polling: Interval,
    /// The directory's modification time at the last poll.
    directory_modified: Option<SystemTime>,
}

impl ChangeListener {
    async fn next(&mut self) -> Result<ContainerChange, BackendError> {
        loop {
            tokio::select! {
                change = self.changes.recv() => return change.map_err(|error| BackendError::Unavailable(match error {
                    RecvError::Lagged(count) => format!("{count} changes were missed").into(),
                    RecvError::Closed => "the simulation ended".into(),
                })),
                _ = self.polling.tick() => self.files.apply_exit_files(&mut self.directory_modified)?,
            }
        }
    }
}
