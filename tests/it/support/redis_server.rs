//! A Redis server of a test's own, to be flushed, stopped and killed.

use std::process::{Child, Command, Stdio};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

pub struct RedisServer {
    child: Child,
    dir: TempDir,
}

impl RedisServer {
    pub fn start() -> Self {
        let dir = TempDir::new().unwrap();
        Self { child: spawn(&dir), dir }
    }

    pub fn url(&self) -> String {
        format!("unix:{}", socket(&self.dir))
    }

    pub fn socket(&self) -> std::path::PathBuf {
        socket(&self.dir).into()
    }

    /// The directory of the server's files.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Kills the server by SIGKILL; `restart` starts it again on the same address.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.child = spawn(&self.dir);
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Runs a command by redis-cli and returns its output.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli").args(["-s", &socket(&self.dir)]).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

fn socket(dir: &TempDir) -> String {
    dir.path().join("redis.sock").display().to_string()
}

fn spawn(dir: &TempDir) -> Child {
    // The loop below would take the socket file of a killed server for a running one.
    let _ = std::fs::remove_file(socket(dir));
    let child = Command::new("redis-server")
        .args(["--port", "0", "--unixsocket", &socket(dir), "--save", "", "--appendonly", "yes", "--dir"])
        .arg(dir.path())
        .args(["--maxmemory-policy", "noeviction"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while std::os::unix::net::UnixStream::connect(socket(dir)).is_err() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
