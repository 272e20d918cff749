//! Services that cannot be used: the process refuses to start, and its error says what to do.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::json;

use super::exited::{Exited, run_to_exit};
use crate::support::{Cluster, poll_until, redis_server::RedisServer};

const SECONDS: Duration = Duration::from_secs(60);

#[track_caller]
fn assert_refused(cluster: &Cluster, role: &str) -> Exited {
    let mut command = cluster.command(&[role]);
    command.env("RUST_LOG", "error");
    let refused = run_to_exit(command, SECONDS).expect(1);
    refused.line();
    refused
}

#[tokio::test(flavor = "multi_thread")]
async fn evicting_redis_is_refused_with_the_command_that_fixes_it() {
    let redis = RedisServer::start();

    assert_eq!(redis.cli(&["config", "set", "maxmemory-policy", "allkeys-lru"]).trim(), "OK");

    let mut cluster = Cluster::simulated().await;
    cluster.set("REDIS_URL", redis.url());
    for role in ["serve", "work", "dev"] {
        let line = assert_refused(&cluster, role).line().to_owned();
        assert!(line.starts_with("app: REDIS_URL: ") && line.contains("allkeys-lru"), "{line}");
        assert!(line.ends_with("redis-cli config set maxmemory-policy noeviction"), "{line}");
    }
    // The operator runs the command that the error shows.
    redis.cli(&["config", "set", "maxmemory-policy", "noeviction"]);
    cluster.spawn("serve").line("the API listens");
    cluster.work();
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_that_is_too_old_is_refused() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("REDIS_URL", redis_6());
    for role in ["serve", "work"] {
        let line = assert_refused(&cluster, role).line().to_owned();
        assert!(line.starts_with("app: REDIS_URL: ") && line.contains("6.2.14") && line.contains("7.0"), "{line}");
    }
}

/// Starts enough of a Redis 6 to return its version; it lives until the test process ends.
fn redis_6() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let (mut reader, mut writer) = (BufReader::new(stream.try_clone().unwrap()), stream);
                while let Some(command) = read_command(&mut reader) {
                    let answer = match command.join(" ").to_ascii_lowercase() {
                        c if c.starts_with("info memory") => bulk("maxmemory_policy:noeviction\r\n"),
                        c if c.starts_with("info") => bulk("redis_version:6.2.14\r\n"),
                        c if c.starts_with("client id") => ":1\r\n".into(),
                        _ => "+OK\r\n".into(),
                    };
                    if writer.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

fn read_command(reader: &mut BufReader<std::net::TcpStream>) -> Option<Vec<String>> {
    let number = |reader: &mut BufReader<std::net::TcpStream>| -> Option<usize> {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        line[1..].trim().parse().ok()
    };
    let count = number(reader)?;
    (0..count)
        .map(|_| {
            let length = number(reader)?;
            let mut bytes = vec![0; length + 2];
            reader.read_exact(&mut bytes).ok()?;
            Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_start_while_redis_is_unreachable() {
    let mut cluster = Cluster::simulated().await;
    let mut redis = RedisServer::start();
    cluster.set("REDIS_URL", redis.url());
    redis.kill();
    let (api, client) = cluster.serve();
    api.line("redis does not answer; workers poll postgres");
    assert_eq!(client.get("/health/ready").await.expect(200).body["status"], "degraded");
}

/// Each process has several clients of Redis, and all of them must connect.
#[tokio::test(flavor = "multi_thread")]
async fn redis_started_late_is_used_by_all_clients_of_a_process() {
    for hangs in [false, true] {
        let mut cluster = Cluster::simulated().await;
        let mut redis = RedisServer::start();
        cluster.set("REDIS_URL", redis.url());
        if hangs {
            redis.signal(Signal::SIGSTOP);
        } else {
            redis.kill();
        }
        let (api, client) = cluster.serve();
        let worker = cluster.work();
        for process in [&api, &worker] {
            process.line("redis does not answer; workers poll postgres");
        }
        if hangs {
            redis.signal(Signal::SIGCONT);
        } else {
            redis.restart();
        }
        const MINUTE: Duration = Duration::from_secs(60);
        poll_until("a replica that is well", MINUTE, async || {
            (client.get("/health/ready").await.expect(200).body["status"] == "ready").then_some(())
        })
        .await;
        poll_until("keys kept in Redis", MINUTE, async || {
            client.get("/keys/self").await.expect(200);
            redis.cli(&["--scan", "--pattern", "app:*:ak1:*"]).contains(":ak1:").then_some(())
        })
        .await;
        poll_until("a revocation that reached Redis", MINUTE, async || {
            let key = client.post("/keys", json!({"name": "brief", "scopes": ["keys:read"]})).await.expect(201);
            let revoked = client.delete(&format!("/keys/{}", key.body["id"].as_str().unwrap())).await;
            (revoked.status == 204).then_some(())
        })
        .await;
        poll_until("a worker that listens", MINUTE, async || {
            redis.cli(&["info", "commandstats"]).contains("cmdstat_blmpop:").then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn evicting_redis_that_starts_late_is_reported() {
    let mut cluster = Cluster::simulated().await;
    let redis = RedisServer::start();
    cluster.set("REDIS_URL", redis.url());

    redis.cli(&["config", "set", "maxmemory-policy", "allkeys-lru"]);
    redis.signal(Signal::SIGSTOP);
    let processes = [cluster.spawn("serve"), cluster.work()];
    for process in &processes {
        process.line("redis does not answer; workers poll postgres");
    }
    redis.signal(Signal::SIGCONT);

    for process in &processes {
        let line = process.line("redis answers, and cannot be relied on");
        assert!(
            line.contains("allkeys-lru") && line.contains("redis-cli config set maxmemory-policy noeviction"),
            "{line}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_redis_is_not_reported_as_unreachable() {
    let mut cluster = Cluster::simulated().await;
    let redis = RedisServer::start();
    cluster.set("REDIS_URL", redis.url());
    let worker = cluster.work();

    // The third pop begins when the second has timed out.
    poll_until("three pops", SECONDS, async || {
        redis.cli(&["info", "commandstats"]).contains("cmdstat_blmpop:calls=3,").then_some(())
    })
    .await;

    assert!(!worker.log().contains("redis does not answer"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn start_errors_name_a_taken_address_and_unreachable_docker() {
    let mut cluster = Cluster::simulated().await;

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    cluster.set("APP_LISTEN", address).set("APP_WORK_LISTEN", address);
    for (role, variable) in [("serve", "APP_LISTEN"), ("work", "APP_WORK_LISTEN")] {
        let line = assert_refused(&cluster, role).line().to_owned();
        assert!(line.starts_with(&format!("app: {variable}: cannot listen on {address}")), "{line}");
    }
    let mut cluster = Cluster::simulated().await;
    cluster.set("COMPUTE_BACKEND", "docker").set("NETWORK_BACKEND", "docker");
    cluster.set("DOCKER_HOST", "unix:///nowhere/docker.sock");

    let line = assert_refused(&cluster, "work").line().to_owned();

    assert!(
        line.starts_with("app: DOCKER_HOST: cannot use the Docker engine at unix:///nowhere/docker.sock"),
        "{line}"
    );
    assert!(line.contains("; example: DOCKER_HOST=unix://"), "{line}");
}
