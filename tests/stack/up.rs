//! The state after `up`: migrated once, healthy services, one published port, a small image.

use std::process::Command;

use serde_json::Value;

use crate::stack::{Stack, docker, docker_succeeds, inspect};

pub async fn second_up_changes_nothing(stack: &Stack) {
    let applied = |log: &str| log.matches("migrate: applied").count();
    let log = stack.compose(&["logs", "--no-color", "migrate"]);
    assert!(applied(&log) > 0 && !log.contains("nothing to do"), "{log}");
    let before = stack.containers("api", true);
    stack.compose(&["up", "-d", "--scale", "api=3"]);
    let again = stack.compose(&["logs", "--no-color", "migrate"]);
    assert_eq!(applied(&again), applied(&log), "{again}");
    assert!(again.contains("nothing to do"), "{again}");
    let secrets = stack.compose(&["logs", "--no-color", "secrets"]);
    assert_eq!(secrets.matches("written").count(), 5, "{secrets}");
    assert_eq!(secrets.matches("kept").count(), 5, "{secrets}");
    assert_eq!(stack.containers("api", true), before, "the second up created new replicas");
    for once in ["migrate", "secrets"] {
        assert_eq!(inspect(&stack.container(once))["State"]["ExitCode"], 0, "{once}");
    }
}

pub async fn services_are_healthy_and_only_nginx_publishes_a_port(stack: &Stack) {
    stack.wait_until_healthy(3).await;
    assert_eq!(stack.containers("api", false).len(), 3);
    let config = stack.compose(&["config"]);
    assert!(config.contains("replicas: 3"), "three replicas without --scale as well: {config}");
    for service in ["api", "worker", "nginx", "postgres", "replica", "redis", "prometheus", "migrate", "secrets"] {
        for container in stack.containers(service, true) {
            let details = inspect(&container);
            let bindings = details["HostConfig"]["PortBindings"].as_object().map_or(0, serde_json::Map::len);
            assert_eq!(
                bindings,
                usize::from(service == "nginx"),
                "{service}: {}",
                details["HostConfig"]["PortBindings"]
            );
            assert_eq!(details["HostConfig"]["Privileged"], false, "{service}");
            assert_eq!(details["HostConfig"]["CapDrop"], serde_json::json!(["ALL"]), "{service}");
            let sockets = details["Mounts"].as_array().unwrap().iter();
            let sockets = sockets.filter(|mount| mount["Destination"] == "/var/run/docker.sock").count();
            assert_eq!(sockets, usize::from(service == "worker"), "{service}: {}", details["Mounts"]);
            if ["api", "worker", "migrate", "secrets", "nginx"].contains(&service) {
                assert_eq!(details["HostConfig"]["ReadonlyRootfs"], true, "{service}");
            }
            if ["api", "migrate", "secrets"].contains(&service) {
                assert_eq!(details["Config"]["User"], "65532:65532", "{service}");
            }
            no_secret_in(service, &details["Config"]["Env"]);
        }
    }
}

fn no_secret_in(service: &str, environment: &Value) {
    assert!(holds_secret("DATABASE_URL", "postgresql://app:sesame@postgres/app"), "the check itself");
    for line in environment.as_array().unwrap() {
        let (name, value) = line.as_str().unwrap().split_once('=').unwrap();
        assert!(!holds_secret(name, value), "{service}: {name}");
    }
}

fn holds_secret(name: &str, value: &str) -> bool {
    if name.ends_with("_URL") {
        let authority = value.split_once("://").map_or(value, |(_, rest)| rest);
        let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
        return user.contains(':') || value.contains("password=");
    }
    let is_path = name.ends_with("_FILE") || name.ends_with("_DIR");
    let secret = ["PASSWORD", "PEPPER", "SECRET"].iter().any(|word| name.contains(word));
    secret && !is_path && !value.is_empty()
}

pub async fn image_is_small_and_has_no_shell(stack: &Stack) {
    let details = inspect(inspect(&stack.containers("api", false)[0])["Image"].as_str().unwrap());
    let megabytes = details["Size"].as_f64().unwrap() / 1e6;
    eprintln!("the image has {megabytes:.1} MB");
    assert!(megabytes <= 45.0, "{megabytes}");
    let api = stack.containers("api", false)[0].clone();
    for shell in ["sh", "/bin/sh", "bash", "busybox"] {
        assert!(!docker_succeeds(&["exec", &api, shell, "-c", "exit 0"]), "{shell}");
    }
    assert!(docker_succeeds(&["exec", &api, "/usr/bin/app", "healthcheck"]), "the program itself runs");
}

/// A worker outside the network connects over the sockets, with the same password.
pub async fn sockets_on_volumes_accept_connections(stack: &Stack) {
    let volume = |name: &str, to: &str| format!("{}_{name}:{to}", stack.project);
    let image = inspect(&stack.container("worker"))["Config"]["Image"].as_str().unwrap().to_owned();
    let (sockets, passwords) = (volume("postgres-socket", "/run/pg"), volume("passwords", "/var/lib/app/passwords"));
    let migrate = |passwords: &str| {
        let mut command = Command::new("docker");
        command.args(["run", "--rm", "--network", "none", "-v", &sockets, "-v", passwords]);
        command.args(["-e", "DATABASE_URL=postgresql:///app?host=/run/pg&user=app", "-e", "DB_WAIT_SECONDS=0"]);
        command.args(["-e", "DATABASE_PASSWORD_FILE=/var/lib/app/passwords/database", &image, "migrate", "--check"]);
        command.output().unwrap()
    };
    let output = migrate(&passwords);
    assert!(output.status.success(), "{output:?}");
    let without = migrate("/dev/null:/dev/null");
    assert!(!without.status.success(), "without the password: {without:?}");
    let redis = format!("{}_redis-socket", stack.project);
    let image = inspect(&stack.container("redis"))["Config"]["Image"].as_str().unwrap().to_owned();
    let client = ["run", "--rm", "--network", "none", "-v", &format!("{redis}:/run/redis"), "-v", &passwords];
    let ping = "REDISCLI_AUTH=$(cat /var/lib/app/passwords/redis) redis-cli -s /run/redis/redis.sock ping";
    assert_eq!(docker(&[&client[..], &[&image, "sh", "-c", ping]].concat()).trim(), "PONG");
}
