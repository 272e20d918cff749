//! Pretends to run containers.
//!
//! Promises: what `Compute` does, by the rules in `mod.rs`. A container of the same generation is adopted and not
//! counted in the ledger; one of another generation is replaced.
//! Refuses: replacing for another spec in the same generation, which no caller asks for.

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
    machine::Machine,
    network::SimulatedNetwork,
    record::{Record, State},
};
use crate::{
    backend::{BackendError, Changed, Compute, ContainerSpec, NetworkAttachment, Observed, Progress},
    core::id::{ClusterId, InstanceId},
};

/// The length of a message of the registry `garbled`, in bytes.
const GARBLED_LEN: usize = 3_000_000;
/// How often the files of tests are looked for.
const POLL: Duration = Duration::from_millis(100);
/// 128 + SIGTERM.
const TERMINATED: i64 = 143;

#[derive(Clone)]
pub struct SimulatedCompute {
    machine: Arc<Machine>,
}

impl SimulatedCompute {
    pub fn open(simulation: &Simulation, cluster: ClusterId) -> Result<Self, BackendError> {
        Ok(Self { machine: Arc::new(Machine::open(simulation, cluster)?) })
    }

    /// The networks of the same machine.
    pub fn network(&self) -> SimulatedNetwork {
        SimulatedNetwork { machine: Arc::clone(&self.machine) }
    }

    /// There is no engine to ask.
    #[allow(clippy::unused_async, reason = "alike for all backends")]
    pub async fn version(&self) -> Result<String, BackendError> {
        Ok("simulated".to_owned())
    }

    fn create_now(
        &self,
        container_spec: &ContainerSpec,
        attachment: &NetworkAttachment,
    ) -> Result<String, BackendError> {
        let machine = &self.machine;
        let _writing = machine.lock();
        match machine.load(container_spec.instance)? {
            Some(found) if found.generation == container_spec.generation => return Ok(found.container_id),
            Some(found) => machine.erase(&found)?,
            None if machine.is_strangers(container_spec.instance)? => {
                return Err(BackendError::NameConflict(format!("app-{}", container_spec.instance).into()));
            }
            None => {}
        }
        let record = Record::new(container_spec, attachment, format!("sim-{:016x}", machine.chance.next()));
        if machine.add(&record)? {
            return Ok(record.container_id);
        }
        match machine.load(container_spec.instance)? {
            Some(found) if found.generation == container_spec.generation => Ok(found.container_id),
            _ => Err(BackendError::Unavailable("another process changes the same container".into())),
        }
    }

    fn start_now(&self, instance: InstanceId) -> Result<(), BackendError> {
        let machine = &self.machine;
        let _writing = machine.lock();
        let gone = || BackendError::Unavailable(format!("the container of {instance} is gone").into());
        let mut record = machine.settled(instance)?.ok_or_else(gone)?;
        if record.state == State::Running {
            return Ok(());
        }
        let refused = || BackendError::StartFailed(format!("{}: no such file or directory", record.program()).into());
        record.state = record.started().ok_or_else(refused)?;
        machine.replace(&record, Some("start"))
    }

    fn stop_now(&self, instance: InstanceId) -> Result<(), BackendError> {
        let machine = &self.machine;
        let _writing = machine.lock();
        match machine.settled(instance)? {
            Some(mut record) if record.state == State::Running => {
                record.state = State::Exited { exit_code: TERMINATED };
                machine.replace(&record, Some("stop"))
            }
            _ => Ok(()),
        }
    }

    fn remove_now(&self, instance: InstanceId) -> Result<(), BackendError> {
        self.remove_if(instance, |_| true)
    }

    fn remove_if(&self, instance: InstanceId, is_meant: impl Fn(&Observed) -> bool) -> Result<(), BackendError> {
        let _writing = self.machine.lock();
        match self.machine.load(instance)? {
            Some(record) if is_meant(&record.clone().observed()) => self.machine.erase(&record),
            _ => Ok(()),
        }
    }
}

/// What a registry may answer that is broken or malicious: control characters, and megabytes of them.
fn garbled(image: &str) -> String {
    format!("{image}: gone\0for\r\ngood{}", "\u{1b}\0".repeat(GARBLED_LEN / 2))
}

impl Compute for SimulatedCompute {
    async fn ensure_image(&self, image: &str, progress: Progress<'_>) -> Result<(), BackendError> {
        self.machine
            .chance
            .perform("ensure_image", || {
                progress(format!("{image}: simulated").into());
                match image.split_once('/').map(|(registry, _)| registry) {
                    Some("missing") => Err(BackendError::ImageNotFound(image.into())),
                    Some("unreachable") => Err(BackendError::ImagePullFailed(format!("{image}: no registry").into())),
                    Some("garbled") => {
                        progress(garbled(image).into());
                        Err(BackendError::ImageNotFound(garbled(image).into()))
                    }
                    Some("panic") => panic!("{image}: a simulated fault"),
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
        self.machine.chance.perform("create", || self.create_now(container_spec, attachment)).await
    }

    async fn start(&self, instance: InstanceId) -> Result<(), BackendError> {
        self.machine.chance.perform("start", || self.start_now(instance)).await
    }

    async fn stop(&self, instance: InstanceId, _grace: Duration) -> Result<(), BackendError> {
        self.machine.chance.perform("stop", || self.stop_now(instance)).await
    }

    async fn remove(&self, instance: InstanceId) -> Result<(), BackendError> {
        self.machine.chance.perform("remove", || self.remove_now(instance)).await
    }

    async fn discard(&self, container: &Observed) -> Result<(), BackendError> {
        let is_meant = |found: &Observed| found.container_id == container.container_id;
        self.machine.chance.perform("remove", || self.remove_if(container.instance, is_meant)).await
    }

    async fn inspect(&self, instance: InstanceId) -> Result<Option<Observed>, BackendError> {
        let _writing = self.machine.lock();
        Ok(self.machine.settled(instance)?.map(Record::observed))
    }

    async fn list(&self) -> Result<Vec<Observed>, BackendError> {
        let machine = Arc::clone(&self.machine);
        let records = task::spawn_blocking(move || machine.all()).await;
        let records = records.map_err(|error| BackendError::Unavailable(error.to_string().into()))??;
        Ok(records.into_iter().map(Record::observed).collect())
    }

    fn changes(&self) -> BoxStream<'static, Result<Changed, BackendError>> {
        let listener = Listener {
            changes: self.machine.changes.subscribe(),
            machine: Arc::clone(&self.machine),
            polling: time::interval(POLL),
            seen: None,
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

struct Listener {
    machine: Arc<Machine>,
    changes: broadcast::Receiver<Changed>,
    polling: Interval,
    seen: Option<SystemTime>,
}

impl Listener {
    async fn next(&mut self) -> Result<Changed, BackendError> {
        loop {
            tokio::select! {
                change = self.changes.recv() => return change.map_err(|error| match error {
                    RecvError::Lagged(missed) => BackendError::Unavailable(format!("{missed} changes were missed").into()),
                    RecvError::Closed => BackendError::Unavailable("the simulation ended".into()),
                }),
                _ = self.polling.tick() => self.machine.settle_all(&mut self.seen)?,
            }
        }
    }
}
