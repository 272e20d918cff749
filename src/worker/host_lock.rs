//! One worker per cluster and host name on this machine: an exclusive lock that ends with the process.
//!
//! Its file is under `/run` where that can be written, else in the state directory. A worker that ends by itself removes
//! the file; after a crash it stays, and the next worker of the name takes it over.

use std::{
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use nix::fcntl::{Flock, FlockArg};

use crate::core::id::ClusterId;

/// Held as long as the worker works.
pub struct HostLock {
    path: PathBuf,
    _file: Flock<File>,
}

impl HostLock {
    /// # Errors
    /// One line that names the variable when another process holds it, or no place can be written.
    pub fn acquire(state_dir: &Path, cluster: ClusterId, name: &str) -> anyhow::Result<Self> {
        let file_name = format!("app-{cluster}-{name}.lock");
        loop {
            let (path, file) = open(state_dir, &file_name)?;
            let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
                anyhow!(
                    "APP_HOST_NAME: another worker named \"{name}\" runs on this machine ({error}); stop it, or run this \
                     one on another machine, under another name; example: APP_HOST_NAME={name}-2"
                )
            })?;
            // Whoever held it may have removed the file while we opened it: then another may hold the new one.
            if std::fs::metadata(&path).ok().map(|now| now.ino()) == file.metadata().ok().map(|ours| ours.ino()) {
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
        // Still locked: nobody else can have taken it in between.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_held_by_one_and_free_again_without_a_trace() {
        let (state, cluster) = (tempfile::tempdir().expect("a directory"), ClusterId::new());
        let held = HostLock::acquire(state.path(), cluster, "h").expect("free");
        let refused = HostLock::acquire(state.path(), cluster, "h").map(drop).expect_err("held").to_string();
        assert!(refused.starts_with("APP_HOST_NAME: "), "{refused}");
        assert!(HostLock::acquire(state.path(), cluster, "another").is_ok());
        assert!(HostLock::acquire(state.path(), ClusterId::new(), "h").is_ok(), "another installation");
        let path = held.path.clone();
        drop(held);
        assert!(!path.exists());
        assert!(HostLock::acquire(state.path(), cluster, "h").is_ok());
    }
}
