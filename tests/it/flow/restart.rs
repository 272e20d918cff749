//! Restarts on real Docker: a restart starts the existing container, and keeps its files and volumes whatever goes
//! wrong.

use std::{
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    docker::{containers, docker, inspect},
    page::page,
};
use crate::support::{Client, Cluster, DroppedStart, poll_until};

const POLL_TIMEOUT: Duration = Duration::from_secs(60);

async fn wait_for_restart(client: &Client, id: &str, times: i64) -> Value {
    poll_until("running again", POLL_TIMEOUT, async || {
        let instance = client.get(&format!("/instances/{id}")).await.expect(200).body;
        (instance["restart_count"] == times && instance["status"] == "running").then_some(instance)
    })
    .await
}

/// Pauses the queue as an operator would (docs/operations.md): no job is claimed until `resume`.
async fn pause(cluster: &Cluster) {
    let pause = "insert into queue_control (scope, paused, reason) values ('all', true, 'a test')";
    cluster.sql().await.execute(pause, &[]).await.unwrap();
}

async fn resume(cluster: &Cluster) {
    cluster.sql().await.execute("delete from queue_control", &[]).await.unwrap();
}

/// Returns the newest job of the restart policy.
async fn start_job(client: &Client, id: &str) -> Value {
    client.get(&format!("/jobs?kind=start&instance={id}")).await.expect(200).body["items"][0].clone()
}

fn steps(job: &Value) -> Vec<&str> {
    job["steps"].as_array().unwrap().iter().map(|step| step["name"].as_str().unwrap()).collect()
}

/// Builds an image like the demo's, with an anonymous volume at `/data`.
fn image_with_volume(cluster: &Cluster, image: &str) {
    let made = docker(cluster, &["create", &cluster.image]);
    docker(cluster, &["commit", "--change", "VOLUME /data", made.trim(), image]);
    docker(cluster, &["rm", made.trim()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_keeps_container_and_volume_when_a_start_is_cut_off() {
    let Some(mut cluster) = Cluster::docker("restart_keeps_container_and_volume_when_a_start_is_cut_off").await else {
        return;
    };
    let image = format!("it-restart-{}:1", std::process::id());
    image_with_volume(&cluster, &image);
    let engine = cluster.docker_host.clone().unwrap();
    let line = DroppedStart::before(&engine).await;
    cluster.docker_host = Some(line.host.clone());
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    cluster.docker_host = Some(engine);
    let body = json!({"image": image, "restart_policy": "always", "command": ["sleep", "600"]});
    let id = client.create_running(body).await["id"].as_str().unwrap().to_owned();
    let name = format!("app-{id}");
    let before = inspect(&cluster, &name);
    docker(&cluster, &["exec", &name, "sh", "-c", "echo kept > /file && echo kept > /data/file"]);

    line.arm();
    docker(&cluster, &["kill", &name]);
    wait_for_restart(&client, &id, 1).await;

    assert!(!line.is_armed(), "no start was cut off");
    assert_eq!(start_job(&client, &id).await["attempt"], 2);
    let after = inspect(&cluster, &name);
    assert_eq!((&after["Id"], &after["Mounts"]), (&before["Id"], &before["Mounts"]));
    assert_eq!(docker(&cluster, &["exec", &name, "cat", "/file", "/data/file"]), "kept\nkept\n");
    // A delete removes the volumes.
    client.delete_fully(&id).await;
    let volume = before["Mounts"][0]["Name"].as_str().unwrap();
    assert!(!docker(&cluster, &["volume", "ls", "-q"]).lines().any(|line| line == volume));
    docker(&cluster, &["rmi", &image]);
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_needs_neither_image_nor_registry() {
    let Some(cluster) = Cluster::docker("restart_needs_neither_image_nor_registry").await else { return };
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let image = format!("it-untagged-{}:1", std::process::id());
    docker(&cluster, &["tag", &cluster.image, &image]);
    let body = json!({"image": image, "restart_policy": "always", "command": ["sleep", "600"]});
    let id = client.create_running(body).await["id"].as_str().unwrap().to_owned();
    let before = containers(&cluster).await;

    docker(&cluster, &["rmi", &image]);
    docker(&cluster, &["kill", &format!("app-{id}")]);
    wait_for_restart(&client, &id, 1).await;

    assert_eq!(containers(&cluster).await, before);
    assert_eq!(steps(&start_job(&client, &id).await), ["container", "network", "start", "publish"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_joins_a_network_that_was_created_anew() {
    let Some(cluster) = Cluster::docker("restart_joins_a_network_that_was_created_anew").await else { return };
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let body = json!({"image": cluster.image, "restart_policy": "always", "ports": [{"container": 80}]});
    let id = client.create_running(body).await["id"].as_str().unwrap().to_owned();
    let before = containers(&cluster).await;

    pause(&cluster).await;
    docker(&cluster, &["kill", &format!("app-{id}")]);
    let instance = client.wait_for(&id, "starting").await;
    docker(&cluster, &["network", "rm", &format!("app-{}", instance["network"]["id"].as_str().unwrap())]);
    resume(&cluster).await;
    let instance = wait_for_restart(&client, &id, 1).await;

    assert_eq!(containers(&cluster).await, before);
    assert!(page(&instance).await.contains("It runs"));
    let networks = inspect(&cluster, &format!("app-{id}"))["NetworkSettings"]["Networks"].clone();
    let endpoint = networks.as_object().unwrap().values().next().unwrap();
    assert_eq!(endpoint["IPAddress"], instance["network"]["address"]);
    assert_eq!(endpoint["MacAddress"], instance["network"]["mac"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_that_fails_for_good_keeps_the_container() {
    let Some(cluster) = Cluster::docker("restart_that_fails_for_good_keeps_the_container").await else { return };
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let body = json!({"image": cluster.image, "restart_policy": "always", "ports": [{"container": 80}]});
    let instance = client.create_running(body).await;
    let (id, port) = (instance["id"].as_str().unwrap(), instance["ports"][0]["host"].as_u64().unwrap());
    let name = format!("app-{id}");
    let before = containers(&cluster).await;
    docker(&cluster, &["exec", &name, "sh", "-c", "echo kept > /file"]);

    pause(&cluster).await;
    docker(&cluster, &["kill", &name]);
    let _taken = poll_until("the port is free", POLL_TIMEOUT, async || {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, u16::try_from(port).unwrap())).ok()
    })
    .await;
    resume(&cluster).await;
    let failed = client.wait_for(id, "failed").await;

    assert_eq!(failed["status_reason"]["code"], "port_conflict", "{failed}");
    assert_eq!(start_job(&client, id).await["steps"].as_array().unwrap().last().unwrap()["status"], "undone");
    assert_eq!(containers(&cluster).await, before);
    assert!(docker(&cluster, &["cp", &format!("{name}:/file"), "-"]).contains("kept"));
}

#[tokio::test(flavor = "multi_thread")]
async fn reason_names_memory_only_when_the_own_process_was_killed() {
    let Some(cluster) = Cluster::docker("reason_names_memory_only_when_the_own_process_was_killed").await else {
        return;
    };
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();

    let grow = "x=a; while :; do x=$x$x; done";

    for (command, exit_code, detail) in [
        (format!("({grow}); sleep 1; exit 0"), 0, "exit code 0; a process in it ran out of memory"),
        (format!("({grow}); sleep 1; exit 7"), 7, "exit code 7; a process in it ran out of memory"),
        (grow.to_owned(), 137, "killed: out of memory"),
    ] {
        let body = json!({"image": cluster.image, "memory_mib": 16, "command": ["sh", "-c", command]});
        let id = client.post("/instances", body).await.instance();
        let stopped = client.wait_for(&id, "stopped").await;
        assert_eq!((&stopped["exit_code"], &stopped["status_reason"]["detail"]), (&json!(exit_code), &json!(detail)));
    }
}
