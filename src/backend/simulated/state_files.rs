//! The files of the simulated host, and the notifications of their changes.
//!
//! A file is whole or absent, since files are written beside their place and then renamed or linked. Of two processes
//! that create the same container, one succeeds. Each effective operation is one line of the ledger; a process that is
//! killed in the microseconds between the effect and the line leaves it out.
//!
//! Each call makes a few small reads and writes under a lock that is never held across an `.await`. Only `all` reads
//! every file, and belongs on a blocking thread.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    process,
    time::{Duration, SystemTime},
};

use parking_lot::{Mutex, MutexGuard};
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::broadcast;

use super::{
    Simulation,
    faults::FaultInjector,
    record::{Record, State},
};
use crate::{
    backend::{BackendError, ContainerChange},
    core::id::{ClusterId, InstanceId, NetworkId},
};

/// How many unread changes a listener may have; with more, it gets an error and subscribes again.
const CHANGES_LIMIT: usize = 4096;
/// How coarse the time stamps of a file system may be: a directory changed this recently may change again without a new
/// modification time.
const MTIME_GRANULARITY_MAX: Duration = Duration::from_millis(500);

/// The files of one cluster on a simulated host.
pub(super) struct StateFiles {
    root: PathBuf,
    pub(super) faults: FaultInjector,
    ledger: File,
    /// Held from reading a record until its new version is written.
    write_lock: Mutex<()>,
    pub(super) changes: broadcast::Sender<ContainerChange>,
}

impl StateFiles {
    /// Opens the files of a cluster, and creates them if there are none.
    ///
    /// # Errors
    /// `Unavailable` when the directory cannot be written.
    pub(super) fn open(simulation: &Simulation, cluster: ClusterId) -> Result<Self, BackendError> {
        let root = simulation.state_dir.join("simulated").join(cluster.to_string());
        let open = || {
            fs::create_dir_all(root.join("instances"))?;
            fs::create_dir_all(root.join("networks"))?;
            OpenOptions::new().create(true).append(true).open(root.join("ledger.log"))
        };
        Ok(Self {
            ledger: open().map_err(file_error)?,
            faults: FaultInjector::new(simulation.seed, simulation.latency, simulation.fail_rate),
            write_lock: Mutex::new(()),
            changes: broadcast::channel(CHANGES_LIMIT).0,
            root,
        })
    }

    /// Locks the records against other writers of this process.
    pub(super) fn lock(&self) -> MutexGuard<'_, ()> {
        self.write_lock.lock()
    }

    /// Reads a container's record.
    pub(super) fn load(&self, instance: InstanceId) -> Result<Option<Record>, BackendError> {
        match fs::read(self.file(instance)) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| file_error(error.into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file_error(error)),
        }
    }

    /// Creates a container. Returns `false` when it exists, because another process was first.
    pub(super) fn add(&self, record: &Record) -> Result<bool, BackendError> {
        self.join_network(record)?;
        let draft = self.draft(record)?;
        // Unlike a rename, a link fails if the name exists.
        let linked = fs::hard_link(&draft, self.file(record.instance));
        fs::remove_file(&draft).map_err(file_error)?;
        match linked {
            Ok(()) => self.append_to_ledger("create", record).map(|()| true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(file_error(error)),
        }
    }

    /// Writes a container's record, and enters the operation, if any, in the ledger.
    pub(super) fn replace(&self, record: &Record, op: Option<&'static str>) -> Result<(), BackendError> {
        fs::rename(self.draft(record)?, self.file(record.instance)).map_err(file_error)?;
        if let Some(op) = op {
            self.append_to_ledger(op, record)?;
        }
        self.notify(record.instance);
        Ok(())
    }

    /// Removes a container.
    pub(super) fn remove(&self, record: &Record) -> Result<(), BackendError> {
        allow_absent(fs::remove_file(self.exit_file(record.instance)))?;
        allow_absent(fs::remove_file(self.file(record.instance)))?;
        allow_absent(fs::remove_file(self.network_directory(record.network).join(record.instance.to_string())))?;
        self.append_to_ledger("rm", record)?;
        self.notify(record.instance);
        Ok(())
    }

    /// Applies the exit file that a test may have written, and returns the container as it is then.
    pub(super) fn load_current(&self, instance: InstanceId) -> Result<Option<Record>, BackendError> {
        let Some(mut record) = self.load(instance)? else { return Ok(None) };
        if record.state == State::Running
            && let Ok(text) = fs::read_to_string(self.exit_file(instance))
        {
            record.state = State::Exited { exit_code: text.trim().parse().unwrap_or(1) };
            self.replace(&record, None)?;
            allow_absent(fs::remove_file(self.exit_file(instance)))?;
        }
        Ok(Some(record))
    }

    /// Applies all exit files. `last_modified` is the directory's modification time at the last call: where it has not
    /// changed, the call costs one `stat`.
    pub(super) fn apply_exit_files(&self, last_modified: &mut Option<SystemTime>) -> Result<(), BackendError> {
        let directory = self.root.join("instances");
        let modified = fs::metadata(&directory).and_then(|meta| meta.modified()).map_err(file_error)?;
        if *last_modified == Some(modified) {
            return Ok(());
        }
        for entry in fs::read_dir(&directory).map_err(file_error)? {
            if let Some(instance) = id_of(&entry.map_err(file_error)?.path(), "exit") {
                let _guard = self.lock();
                self.load_current(instance)?;
            }
        }
        let is_old = modified.elapsed().is_ok_and(|age| age > MTIME_GRANULARITY_MAX);
        *last_modified = is_old.then_some(modified);
        Ok(())
    }

    /// Returns all containers. It reads every file, so it belongs on a blocking thread.
    pub(super) fn all(&self) -> Result<Vec<Record>, BackendError> {
        let mut records = Vec::new();
        for entry in fs::read_dir(self.root.join("instances")).map_err(file_error)? {
            if let Some(instance) = id_of(&entry.map_err(file_error)?.path(), "json") {
                let _guard = self.lock();
                records.extend(self.load_current(instance)?);
            }
        }
        Ok(records)
    }

    /// Returns whether another cluster on this host has a container of that name.
    pub(super) fn exists_in_another_cluster(&self, instance: InstanceId) -> Result<bool, BackendError> {
        let Some(clusters) = self.root.parent() else { return Ok(false) };
        for entry in fs::read_dir(clusters).map_err(file_error)? {
            let cluster = entry.map_err(file_error)?.path();
            if cluster != self.root && cluster.join("instances").join(format!("{instance}.json")).exists() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the directory of a network.
    pub(super) fn network_directory(&self, network: NetworkId) -> PathBuf {
        self.root.join("networks").join(network.to_string())
    }

    /// Returns all networks.
    pub(super) fn networks(&self) -> Result<Vec<NetworkId>, BackendError> {
        let mut networks = Vec::new();
        for entry in fs::read_dir(self.root.join("networks")).map_err(file_error)? {
            let name = entry.map_err(file_error)?.file_name();
            networks.extend(name.to_str().and_then(|name| name.parse::<NetworkId>().ok()));
        }
        Ok(networks)
    }

    fn notify(&self, instance: InstanceId) {
        // An error means that there is no listener.
        let _ = self.changes.send(ContainerChange { instance });
    }

    fn append_to_ledger(&self, op: &str, record: &Record) -> Result<(), BackendError> {
        let at = OffsetDateTime::now_utc().format(&Rfc3339).map_err(|error| file_error(io::Error::other(error)))?;
        let (instance, generation, token, job) = (record.instance, record.generation, record.token, record.job);
        let line = json!({
            "at": at, "op": op, "instance": instance, "generation": generation, "token": token, "job": job,
            "pid": process::id(),
        });
        // One write in append mode, so that the lines of several processes do not mix.
        (&self.ledger).write_all(format!("{line}\n").as_bytes()).map_err(file_error)
    }

    fn join_network(&self, record: &Record) -> Result<(), BackendError> {
        let directory = self.network_directory(record.network);
        let join = || {
            fs::create_dir_all(&directory)?;
            File::create(directory.join(record.instance.to_string())).map(drop)
        };
        // Another process may release the network between the two steps; the second try creates it again.
        join().or_else(|_| join()).map_err(file_error)
    }

    /// Writes a record to a new file with a random name, so that two writers never share it.
    fn draft(&self, record: &Record) -> Result<PathBuf, BackendError> {
        let draft = self.root.join(format!(".{}-{:016x}.tmp", process::id(), self.faults.next()));
        let text = serde_json::to_vec(record).map_err(|error| file_error(error.into()))?;
        fs::write(&draft, text).map_err(file_error)?;
        Ok(draft)
    }

    fn file(&self, instance: InstanceId) -> PathBuf {
        self.root.join("instances").join(format!("{instance}.json"))
    }

    fn exit_file(&self, instance: InstanceId) -> PathBuf {
        self.root.join("instances").join(format!("{instance}.exit"))
    }
}

/// Returns the backend's error for a file that cannot be used.
pub(super) fn file_error(error: io::Error) -> BackendError {
    BackendError::Unavailable(format!("the simulation's files: {error}").into())
}

/// Turns the error of a file that does not exist into a success.
fn allow_absent(outcome: io::Result<()>) -> Result<(), BackendError> {
    match outcome {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(file_error(error)),
        _ => Ok(()),
    }
}

/// Returns the instance that a file with this extension is named after.
fn id_of(path: &Path, extension: &str) -> Option<InstanceId> {
    path.extension().filter(|found| *found == extension)?;
    path.file_stem()?.to_str()?.parse().ok()
}
