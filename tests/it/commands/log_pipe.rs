//! Standard error is a pipe that is not read or whose reader has ended: it delays neither requests, nor jobs, nor the
//! end of the process.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStderr, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use super::exited::run_to_exit;
use crate::support::{Client, Cluster};

/// Far more than a request, a job or the end of a process takes here.
const MAX_DURATION: Duration = Duration::from_secs(10);
/// The number of concurrent requests, and of requests between two reads of the metric.
const TASKS: usize = 16;
const REQUESTS: usize = 1000;

/// A process that logs everything, and whose log the test reads only as far as `line` has returned.
struct PipedProcess {
    child: Child,
    stderr: Option<BufReader<ChildStderr>>,
}

impl PipedProcess {
    fn spawn(cluster: &Cluster, role: &str) -> Self {
        let mut command = cluster.command(&[role]);
        command.env("RUST_LOG", "trace").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = child.stderr.take().map(BufReader::new);
        Self { child, stderr }
    }

    /// Reads up to the next line with this text.
    fn line(&mut self, text: &str) -> String {
        let lines = self.stderr.as_mut().unwrap().lines();
        lines.map(Result::unwrap).find(|line| line.contains(text)).unwrap_or_else(|| panic!("no line with \"{text}\""))
    }

    /// Reads up to the next line with this text, and returns its address.
    fn base_url(&mut self, line: &str) -> String {
        format!("http://{}", self.line(line).rsplit("address=").next().unwrap().trim())
    }

    /// Closes the pipe: from now on writing to it fails.
    fn close(&mut self) {
        self.stderr = None;
    }

    /// Sends SIGTERM; returns how the process ended and how long that took, without reading its log.
    fn terminate(&mut self) -> (ExitStatus, Duration) {
        let started = Instant::now();
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM).unwrap();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, started.elapsed());
            }
            assert!(started.elapsed() < Duration::from_secs(60), "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for PipedProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns how many log lines the process has dropped, by its metric.
async fn dropped(client: &Client) -> u64 {
    let metrics = client.get("/metrics").await.expect(200).text;
    let line = metrics.lines().find_map(|line| line.strip_prefix("log_lines_dropped_total "));
    line.map_or(0, |count| count.parse().unwrap())
}

/// Sends requests until log lines were dropped: then the pipe is full, and so is the buffer before it. Returns the
/// number of requests, and the longest time of one.
async fn send_until_lines_are_dropped(client: &Client, path: &str) -> (usize, Duration) {
    let (mut sent, mut slowest) = (0, Duration::ZERO);
    while dropped(client).await == 0 {
        let took = stream::iter(0..REQUESTS).map(|_| async {
            let started = Instant::now();
            client.get(path).await.expect(200);
            started.elapsed()
        });
        slowest = took.buffer_unordered(TASKS).fold(slowest, async |slowest, took| slowest.max(took)).await;
        sent += REQUESTS;
        assert!(sent < 100 * REQUESTS, "nothing is dropped");
    }
    (sent, slowest)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_served_while_the_log_is_not_read() {
    let cluster = Cluster::simulated().await;
    let mut api = PipedProcess::spawn(&cluster, "serve");
    let client = Client::new(&api.base_url("the API listens"), &cluster.key("acme", "admin"));

    let (sent, slowest) = send_until_lines_are_dropped(&client, "/keys/self").await;
    client.post("/instances", json!({"image": "web:1"})).await.expect(202);

    eprintln!("{sent} requests, the slowest took {slowest:.1?}");
    assert!(slowest < MAX_DURATION, "{slowest:?}");
    // When the log is read again, it reports how many lines are missing.
    let report = api.line("log lines were dropped");
    assert!(report.contains("lines="), "{report}");
    // The process ends, though the pipe may be full once more.
    let (status, took) = api.terminate();
    assert_eq!(status.code(), Some(0));
    assert!(took < MAX_DURATION, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_finish_while_the_log_is_not_read() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let mut worker = PipedProcess::spawn(&cluster, "work");
    let health = Client::new(&worker.base_url("the worker's health and metrics listen"), "");

    let (sent, slowest) = send_until_lines_are_dropped(&health, "/health/live").await;
    let started = Instant::now();
    let instance = client.create_running(json!({"image": "web:1"})).await;
    client.delete_fully(instance["id"].as_str().unwrap()).await;

    eprintln!("{sent} requests, the slowest took {slowest:.1?}; the jobs took {:.1?}", started.elapsed());
    assert!(slowest < MAX_DURATION && started.elapsed() < MAX_DURATION, "{slowest:?}, {:?}", started.elapsed());
    let (status, took) = worker.terminate();
    assert_eq!(status.code(), Some(0));
    assert!(took < MAX_DURATION, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_log_pipe_ends_neither_requests_nor_jobs() {
    let cluster = Cluster::simulated().await;
    let mut api = PipedProcess::spawn(&cluster, "serve");
    let client = Client::new(&api.base_url("the API listens"), &cluster.key("acme", "admin"));
    let mut worker = PipedProcess::spawn(&cluster, "work");
    worker.line("the worker is registered");
    api.close();
    worker.close();

    send_until_lines_are_dropped(&client, "/keys/self").await;
    let instance = client.create_running(json!({"image": "web:1"})).await;
    client.delete_fully(instance["id"].as_str().unwrap()).await;

    for process in [&mut api, &mut worker] {
        let (status, took) = process.terminate();
        assert_eq!(status.code(), Some(0));
        assert!(took < MAX_DURATION, "{took:?}");
    }
}

/// The error is written last and is not lost, though a thread writes the lines before it.
#[tokio::test(flavor = "multi_thread")]
async fn fatal_error_is_the_last_log_line() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("COMPUTE_BACKEND", "docker").set("NETWORK_BACKEND", "docker");
    cluster.set("DOCKER_HOST", "unix:///nowhere/docker.sock");
    let mut command = cluster.command(&["work"]);
    command.env("RUST_LOG", "trace");

    let exited = run_to_exit(command, Duration::from_secs(60)).expect(1);

    let lines: Vec<&str> = exited.stderr.lines().collect();
    let (last, before) = lines.split_last().unwrap();
    assert!(last.starts_with("app: DOCKER_HOST: cannot use the Docker engine"), "{exited:?}");
    assert!(!before.is_empty() && before.iter().all(|line| line.contains(" TRACE ")), "{exited:?}");
}
