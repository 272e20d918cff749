//! A Postgres server of a test's own that can be stopped, hung and started again, with a streaming replica for tests
//! that need one.
//!
//! The server listens on a socket in its own directory and runs without fsync. Dropping it stops it and removes its
//! files.

use std::{
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{cluster::connect, env, poll_until};

pub struct Postgres {
    dir: TempDir,
    child: Option<Child>,
}

impl Postgres {
    /// Initialises a server and does not start it.
    pub fn initialised() -> Self {
        let server = Self { dir: directory(), child: None };
        let data = server.data();
        server.tool("initdb", &["-D", &data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
        server
    }

    /// Starts a server that accepts writes and can have a replica.
    pub async fn primary() -> Self {
        let mut server = Self::initialised();
        server.start().await;
        server
    }

    /// Starts a streaming replica of `primary`; it begins with everything that the primary had before.
    pub async fn replica_of(primary: &Self) -> Self {
        let mut server = Self { dir: directory(), child: None };
        let (data, from) = (server.data(), primary.socket().display().to_string());
        let base = ["-D", &data, "-h", &from, "-U", "postgres", "-R", "-X", "stream", "-c", "fast", "--no-sync"];
        server.tool("pg_basebackup", &base);
        server.start().await;
        server
    }

    /// Waits until this replica has replayed everything that its primary has written so far.
    pub async fn catch_up_with(&self, primary: &Self) {
        let now = "select pg_current_wal_insert_lsn()::text";
        let written: String = primary.sql("postgres").await.query_one(now, &[]).await.unwrap().get(0);
        let there = format!("select coalesce(pg_last_wal_replay_lsn() >= '{written}'::pg_lsn, false)");
        let replica = self.sql("postgres").await;
        poll_until("the replica caught up", Duration::from_secs(60), async || {
            replica.query_one(&there, &[]).await.unwrap().get::<_, bool>(0).then_some(())
        })
        .await;
    }

    /// Starts the server and waits until it accepts connections.
    pub async fn start(&mut self) {
        self.spawn();
        poll_until("postgres answers", Duration::from_secs(30), async || {
            let (client, _) = tokio_postgres::connect(&self.url("postgres"), tokio_postgres::NoTls).await.ok()?;
            drop(client);
            Some(())
        })
        .await;
    }

    /// Starts the server and does not wait.
    pub fn spawn(&mut self) {
        let socket = self.socket().display().to_string();
        let mut command = self.command("postgres");
        command.args(["-D", &self.data(), "-k", &socket, "-c", "listen_addresses=", "-c", "fsync=off"]);
        command.args(["-c", "shared_buffers=16MB", "-c", "max_connections=60", "-c", "max_wal_senders=4"]);
        self.child = Some(command.spawn().unwrap());
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgresql://postgres@/{database}?host={}", self.socket().display())
    }

    pub async fn sql(&self, database: &str) -> tokio_postgres::Client {
        connect(&self.url(database)).await
    }

    /// Returns the path of a file in the data directory, such as `pg_hba.conf`.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join("data").join(file)
    }

    /// Stops the server as `pg_ctl stop -m immediate` does: connections are closed and nothing is written.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = pid(&child);
        let _ = kill(pid, Signal::SIGQUIT);
        let deadline = Instant::now() + Duration::from_secs(10);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Suspends all processes of the server: connections stay open and get no response until `resume`.
    pub fn hang(&self) {
        self.signal_all(Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        self.signal_all(Signal::SIGCONT);
    }

    fn signal_all(&self, signal: Signal) {
        let Some(child) = &self.child else { return };
        let postmaster = pid(child);
        // The postmaster first, so that it forks no more children.
        let _ = kill(postmaster, signal);
        let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"));
        for child in children.unwrap_or_default().split_whitespace() {
            let _ = kill(Pid::from_raw(child.parse().unwrap()), signal);
        }
    }

    fn socket(&self) -> &Path {
        self.dir.path()
    }

    fn data(&self) -> String {
        self.dir.path().join("data").display().to_string()
    }

    fn tool(&self, name: &str, arguments: &[&str]) {
        let output = self.command(name).args(arguments).stderr(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn command(&self, name: &str) -> Command {
        let (bin, user) = env::postgres();
        let mut command = Command::new(bin.join(name));
        command.current_dir(self.dir.path()).env_clear().env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(user) = user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A suspended process would not handle the signal to stop.
        self.resume();
        self.stop();
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

/// Creates a directory that belongs to the server's user. Its path is short, since the path of a socket must be.
fn directory() -> TempDir {
    let dir = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").unwrap();
    if let (_, Some(user)) = env::postgres() {
        chown(dir.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
    dir
}
