//! The pretended machine: files, and the announcements of their changes.
//!
//! Promises: a file is whole or absent; of two processes that create one container, one does; each effective operation
//! is one ledger line (a process killed between effect and line, some microseconds, leaves it out).
//! Refuses: waiting. Each call is a few small reads and writes under a lock that is never held across an `.await`;
//! `all` reads every file and belongs on a blocking thread.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    process,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::broadcast;

use super::{
    Simulation,
    chance::Chance,
    record::{Record, State},
};
use crate::{
    backend::{BackendError, Changed},
    core::id::{ClusterId, InstanceId, NetworkId},
};

/// A listener that is this far behind starts over.
const BACKLOG: usize = 4096;
/// File systems stamp with a coarse clock: a directory changed this recently may change again unseen.
const COARSE: Duration = Duration::from_millis(500);

pub(super) struct Machine {
    root: PathBuf,
    pub(super) chance: Chance,
    ledger: File,
    /// Held from reading a record until its successor is written.
    writing: Mutex<()>,
    pub(super) changes: broadcast::Sender<Changed>,
}

impl Machine {
    pub(super) fn open(simulation: &Simulation, cluster: ClusterId) -> Result<Self, BackendError> {
        let root = simulation.state_dir.join("simulated").join(cluster.to_string());
        let open = || {
            fs::create_dir_all(root.join("instances"))?;
            fs::create_dir_all(root.join("networks"))?;
            OpenOptions::new().create(true).append(true).open(root.join("ledger.log"))
        };
        Ok(Self {
            ledger: open().map_err(broken)?,
            chance: Chance::new(simulation.seed, simulation.latency, simulation.fail_rate),
            writing: Mutex::new(()),
            changes: broadcast::channel(BACKLOG).0,
            root,
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, ()> {
        // Files are replaced whole, so a panic cannot leave one half-written.
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn load(&self, instance: InstanceId) -> Result<Option<Record>, BackendError> {
        match fs::read(self.file(instance)) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| broken(error.into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(broken(error)),
        }
    }

    /// Whether it is now there by this call; not if another process was first.
    pub(super) fn add(&self, record: &Record) -> Result<bool, BackendError> {
        self.join_network(record)?;
        let draft = self.draft(record)?;
        // Unlike a rename, a link fails if the name exists.
        let linked = fs::hard_link(&draft, self.file(record.instance));
        fs::remove_file(&draft).map_err(broken)?;
        match linked {
            Ok(()) => self.note("create", record).map(|()| true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(broken(error)),
        }
    }

    pub(super) fn replace(&self, record: &Record, op: Option<&'static str>) -> Result<(), BackendError> {
        fs::rename(self.draft(record)?, self.file(record.instance)).map_err(broken)?;
        if let Some(op) = op {
            self.note(op, record)?;
        }
        self.tell(record.instance);
        Ok(())
    }

    pub(super) fn erase(&self, record: &Record) -> Result<(), BackendError> {
        absent_is_fine(fs::remove_file(self.exit_file(record.instance)))?;
        absent_is_fine(fs::remove_file(self.file(record.instance)))?;
        absent_is_fine(fs::remove_file(self.network(record.network).join(record.instance.to_string())))?;
        self.note("rm", record)?;
        self.tell(record.instance);
        Ok(())
    }

    /// Applies an exit that a test asked for, then tells what the container is now.
    pub(super) fn settled(&self, instance: InstanceId) -> Result<Option<Record>, BackendError> {
        let Some(mut record) = self.load(instance)? else { return Ok(None) };
        if record.state == State::Running
            && let Ok(text) = fs::read_to_string(self.exit_file(instance))
        {
            record.state = State::Exited { exit_code: text.trim().parse().unwrap_or(1) };
            self.replace(&record, None)?;
            absent_is_fine(fs::remove_file(self.exit_file(instance)))?;
        }
        Ok(Some(record))
    }

    /// Settles all that a test asked for. `seen` is the directory's time at the last look: unchanged costs one `stat`.
    pub(super) fn settle_all(&self, seen: &mut Option<SystemTime>) -> Result<(), BackendError> {
        let directory = self.root.join("instances");
        let modified = fs::metadata(&directory).and_then(|meta| meta.modified()).map_err(broken)?;
        if *seen == Some(modified) {
            return Ok(());
        }
        for entry in fs::read_dir(&directory).map_err(broken)? {
            if let Some(instance) = id_of(&entry.map_err(broken)?.path(), "exit") {
                let _writing = self.lock();
                self.settled(instance)?;
            }
        }
        let is_old = modified.elapsed().is_ok_and(|age| age > COARSE);
        *seen = is_old.then_some(modified);
        Ok(())
    }

    pub(super) fn all(&self) -> Result<Vec<Record>, BackendError> {
        let mut records = Vec::new();
        for entry in fs::read_dir(self.root.join("instances")).map_err(broken)? {
            if let Some(instance) = id_of(&entry.map_err(broken)?.path(), "json") {
                let _writing = self.lock();
                records.extend(self.settled(instance)?);
            }
        }
        Ok(records)
    }

    /// Whether another cluster on this machine has a container of that name.
    pub(super) fn is_strangers(&self, instance: InstanceId) -> Result<bool, BackendError> {
        let Some(clusters) = self.root.parent() else { return Ok(false) };
        for entry in fs::read_dir(clusters).map_err(broken)? {
            let cluster = entry.map_err(broken)?.path();
            if cluster != self.root && cluster.join("instances").join(format!("{instance}.json")).exists() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn network(&self, network: NetworkId) -> PathBuf {
        self.root.join("networks").join(network.to_string())
    }

    pub(super) fn networks(&self) -> Result<Vec<NetworkId>, BackendError> {
        let mut networks = Vec::new();
        for entry in fs::read_dir(self.root.join("networks")).map_err(broken)? {
            let name = entry.map_err(broken)?.file_name();
            networks.extend(name.to_str().and_then(|name| name.parse::<NetworkId>().ok()));
        }
        Ok(networks)
    }

    pub(super) fn tell(&self, instance: InstanceId) {
        // Nobody may be listening.
        let _ = self.changes.send(Changed { instance });
    }

    fn note(&self, op: &str, record: &Record) -> Result<(), BackendError> {
        let at = OffsetDateTime::now_utc().format(&Rfc3339).map_err(|error| broken(io::Error::other(error)))?;
        let (instance, generation, token, job) = (record.instance, record.generation, record.token, record.job);
        let line = json!({
            "at": at, "op": op, "instance": instance, "generation": generation, "token": token, "job": job,
            "pid": process::id(),
        });
        // One write in append mode: lines of several processes do not mix.
        (&self.ledger).write_all(format!("{line}\n").as_bytes()).map_err(broken)
    }

    fn join_network(&self, record: &Record) -> Result<(), BackendError> {
        let directory = self.network(record.network);
        let join = || {
            fs::create_dir_all(&directory)?;
            File::create(directory.join(record.instance.to_string())).map(drop)
        };
        // Another process may release the network between the two steps: then once more.
        join().or_else(|_| join()).map_err(broken)
    }

    /// Named by a number of its own, so that two writers never share a draft.
    fn draft(&self, record: &Record) -> Result<PathBuf, BackendError> {
        let draft = self.root.join(format!(".{}-{:016x}.tmp", process::id(), self.chance.next()));
        let text = serde_json::to_vec(record).map_err(|error| broken(error.into()))?;
        fs::write(&draft, text).map_err(broken)?;
        Ok(draft)
    }

    fn file(&self, instance: InstanceId) -> PathBuf {
        self.root.join("instances").join(format!("{instance}.json"))
    }

    fn exit_file(&self, instance: InstanceId) -> PathBuf {
        self.root.join("instances").join(format!("{instance}.exit"))
    }
}

pub(super) fn broken(error: io::Error) -> BackendError {
    BackendError::Unavailable(format!("the simulation's files: {error}").into())
}

fn absent_is_fine(outcome: io::Result<()>) -> Result<(), BackendError> {
    match outcome {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(broken(error)),
        _ => Ok(()),
    }
}

fn id_of(path: &Path, extension: &str) -> Option<InstanceId> {
    path.extension().filter(|found| *found == extension)?;
    path.file_stem()?.to_str()?.parse().ok()
}
