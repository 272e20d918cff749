//! The lock that allows one worker per cluster and host name on this machine.
//!
//! It is a `flock` on a file under `/run`, or in the state directory where `/run` cannot be written. The kernel
//! releases it when the process ends, however that ends. A worker that stops removes the file; after a crash the file
//! stays, and the next worker of the name locks it.

use std::{
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use nix::fcntl::{Flock, FlockArg};

use crate::core::id::ClusterId;

/// The lock of a host name; dropping it releases the lock and removes the file.
pub struct HostLock {
    path: PathBuf,
    _file: Flock<File>,
}

impl HostLock {
    /// Locks the host name `name` of a cluster, without waiting.
    ///
    /// # Errors
    /// One line that names the variable to change: when another process holds the lock, or when neither directory can
    /// be written.
    pub fn acquire(state_dir: &Path, cluster: ClusterId, name: &str) -> anyhow::Result<Self> {
        let file_name = format!("app-{cluster}-{name}.lock");
        loop {
            let (path, file) = open(state_dir, &file_name)?;
            let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
                anyhow!(
                    "APP_HOST_NAME: another worker named \"{name}\" runs on this machine ({error}); stop it, or run \
                     this one on another machine, under another name; example: APP_HOST_NAME={name}-2"
                )
            })?;
            // The previous holder may have removed the file after we opened it. Our lock would then be on a file
            // without a name, and another process could lock a new one.
            let (named, locked) = (std::fs::metadata(&path).ok(), file.metadata().ok());
            if named.map(|file| file.ino()) == locked.map(|file| file.ino()) {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

fn open(state_dir: &Path, file_name: &str) -> anyhow::Result<(PathBuf, File)> {
    let path = Path::new("/run").join(file_name);
    if let Ok(file) = File::create(&path) {
        return Ok((path, file));
    }
    let path = state_dir.join(file_name);
    let file = std::fs::create_dir_all(state_dir).and_then(|()| File::create(&path)).with_context(|| {
        format!("APP_STATE_DIR: {} cannot be written; example: APP_STATE_DIR=/var/lib/app", state_dir.display())
    })?;
    Ok((path, file))
}

impl Drop for HostLock {
    fn drop(&mut self) {
        // The lock is still held here, so no other process can have locked the file.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_lock_excludes_a_second_worker_until_it_is_dropped() {
        let (state, cluster) = (tempfile::tempdir().expect("a directory"), ClusterId::new());
        let lock = HostLock::acquire(state.path(), cluster, "h").expect("a free name");

        let refused = HostLock::acquire(state.path(), cluster, "h").map(drop).expect_err("a locked name").to_string();

        assert!(refused.starts_with("APP_HOST_NAME: "), "{refused}");
        assert!(HostLock::acquire(state.path(), cluster, "another").is_ok());
        assert!(HostLock::acquire(state.path(), ClusterId::new(), "h").is_ok(), "another cluster");

        let path = lock.path.clone();
        drop(lock);

        assert!(!path.exists());
        assert!(HostLock::acquire(state.path(), cluster, "h").is_ok());
    }
}
