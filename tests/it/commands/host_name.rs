//! One worker per host name: a second one is refused while the first is alive, and starts at once when it is not.

use std::{
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::Command,
    time::Duration,
};

use nix::unistd::geteuid;
use tempfile::TempDir;

use super::exited::run_to_exit;
use crate::support::{App, Cluster, proxy::Proxy};

const SECONDS: Duration = Duration::from_secs(60);
/// The user and the group that Linux reserves for processes without rights of their own.
const UNPRIVILEGED_ID: u32 = 65_534;

#[track_caller]
fn assert_refused(command: Command, reason: &str) {
    let refused = run_to_exit(command, SECONDS).expect(1);
    let line = refused.stderr.lines().last().unwrap();
    assert!(
        line.starts_with("app: APP_HOST_NAME: another worker named \"h1\" ") && line.contains(reason),
        "{refused:?}"
    );
    // A second name on the same machine would be a second worker on the same engine.
    assert!(line.contains("another machine"), "{line}");
    assert!(line.ends_with("example: APP_HOST_NAME=h1-2"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn second_worker_of_a_host_name_is_refused_by_a_local_lock() {
    let cluster = Cluster::simulated().await;
    let first = cluster.work();

    assert_refused(cluster.command(&["work"]), "runs on this machine");
    assert_refused(cluster.command(&["dev"]), "runs on this machine");

    // Another name is another host.
    let mut other = cluster.command(&["work"]);
    other.env("APP_HOST_NAME", "h1-2");
    App::spawn("another host", other).line("the worker is registered");
    assert_eq!(first.terminate().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_refuses_a_second_worker_where_no_lock_is_shared() {
    let cluster = Cluster::simulated().await;
    let first = cluster.work();
    let state = TempDir::new().unwrap();
    // The other worker's user cannot open the socket.
    let proxy = Proxy::start(&cluster.database_url).await;

    // That user cannot read the directory of the build either.
    let program = state.path().join("app");
    std::fs::copy(env!("CARGO_BIN_EXE_app"), &program).unwrap();
    std::fs::set_permissions(state.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let elsewhere = || {
        let built = cluster.command(&["work"]);
        let mut command = Command::new(&program);
        command.args(built.get_args()).env_clear();
        command.envs(built.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("APP_STATE_DIR", state.path()).env("DATABASE_URL", &proxy.url);
        // All users who may write to /run share the lock there.
        if geteuid().is_root() {
            std::os::unix::fs::chown(state.path(), Some(UNPRIVILEGED_ID), None).unwrap();
            command.uid(UNPRIVILEGED_ID).gid(UNPRIVILEGED_ID);
        }
        command
    };

    assert_refused(elsewhere(), "is alive (pid ");

    // The killed process is gone from this machine, so the next one need not wait until its heartbeats are too old.
    first.kill();
    let second = App::spawn("the second", elsewhere());
    second.line("the worker is registered");
    assert_eq!(second.terminate().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn next_worker_starts_at_once_after_a_kill_or_a_clean_stop() {
    let mut cluster = Cluster::simulated().await;
    // With a lease of an hour the test would time out if the next worker waited for its end.
    cluster.set("APP_LEASE_MS", 3_600_000);
    let first = cluster.work();

    first.kill();
    let second = cluster.work();
    assert_eq!(second.terminate().code(), Some(0));

    let third = cluster.work();
    let sql = cluster.sql().await;
    let workers = sql.query("select state from workers order by started_at", &[]).await.unwrap();
    let states: Vec<String> = workers.iter().map(|row| row.get(0)).collect();
    assert_eq!(states.len(), 3, "{states:?}");
    assert_eq!(states[1..], ["stopped", "active"], "{states:?}");

    let hosts: i64 = sql.query_one("select count(*) from hosts", &[]).await.unwrap().get(0);
    assert_eq!(hosts, 1, "one name is one host");
    assert_eq!(third.terminate().code(), Some(0));
}
