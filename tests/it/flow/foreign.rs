//! Other parties on the same engine: another host's worker, and an operator who renames containers or creates some with
//! our names.

use std::{
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use serde_json::json;
use uuid::Uuid;

use super::docker::{containers, docker, inspect};
use crate::support::{App, Cluster, poll_until};

const POLL_TIMEOUT: Duration = Duration::from_secs(60);

/// Creates a container of this cluster under a foreign name, whose instance has no row, and returns its id.
async fn orphan(cluster: &Cluster) -> String {
    let cluster_id = format!("app.cluster={}", cluster.id().await);
    let instance = format!("app.instance={}", Uuid::now_v7());
    let labels = ["--label", &cluster_id, "--label", &instance, "--label", "app.generation=1", "--label", "app.spec=0"];
    let run = [&["run", "-d"], &labels[..], &[&cluster.image, "sleep", "600"]].concat();
    docker(cluster, &run).trim().to_owned()
}

/// Waits until the worker has removed what was without an owner for longer than the grace.
async fn wait_for_collection(cluster: &Cluster) {
    let orphan = orphan(cluster).await;
    poll_until("the orphan removed", POLL_TIMEOUT, async || {
        let left = docker(cluster, &["ps", "-aq", "--no-trunc"]);
        (!left.contains(&orphan)).then_some(())
    })
    .await;
}

/// Reads a metric of a worker.
async fn metric(worker: &App, name: &str) -> Option<f64> {
    let line = worker.line("the worker's health and metrics listen");
    let base = line.rsplit("address=").next().unwrap().trim().to_owned();
    let text = reqwest::get(format!("http://{base}/metrics")).await.unwrap().text().await.unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_of_two_host_names_leave_each_others_containers_alone() {
    let Some(mut cluster) = Cluster::docker("workers_of_two_host_names_leave_each_others_containers_alone").await
    else {
        return;
    };
    cluster.set("APP_ORPHAN_GRACE_MS", 500);
    let (_api, client) = cluster.serve();
    let first = cluster.work();
    let on = |host: &str| json!({"image": cluster.image, "placement": {"host": host}});
    let firsts = client.create_running(on("h1")).await["id"].as_str().unwrap().to_owned();
    let firsts_id = inspect(&cluster, &format!("app-{firsts}"))["Id"].clone();
    let mut command = cluster.command(&["work"]);
    command.env("APP_HOST_NAME", "h2").env("APP_STATE_DIR", cluster.state.path().join("h2"));
    let second = App::spawn("h2", command);
    second.line("the worker is registered");
    let seconds = client.create_running(on("h2")).await["id"].as_str().unwrap().to_owned();

    // Each worker logs an alarm that names the instance and both hosts.
    for (worker, foreign, its_host) in [(&first, &seconds, "h2"), (&second, &firsts, "h1")] {
        let alarm = worker.line("belongs to another host");
        let named = format!("placed_on_name=Some(\"{its_host}\")");
        for part in ["ERROR", foreign, "created_by_host=Some(", "this_host=", &named] {
            assert!(alarm.contains(part), "{part}: {alarm}");
        }
        poll_until("the gauge", POLL_TIMEOUT, async || {
            (metric(worker, "host_foreign_containers").await? > 0.5).then_some(())
        })
        .await;
    }
    wait_for_collection(&cluster).await;
    for id in [&firsts, &seconds] {
        assert_eq!(inspect(&cluster, &format!("app-{id}"))["State"]["Running"], true);
        assert_eq!(client.get(&format!("/instances/{id}")).await.body["status"], "running");
    }
    // They are also kept when the other worker has ended, or has only got a new name.
    assert!(first.terminate().success());
    wait_for_collection(&cluster).await;
    let left = inspect(&cluster, &format!("app-{firsts}"));
    assert_eq!((&left["Id"], &left["State"]["Running"]), (&firsts_id, &json!(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn renamed_container_is_started_again_and_deleted() {
    let Some(cluster) = Cluster::docker("renamed_container_is_started_again_and_deleted").await else { return };
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let body = json!({"image": cluster.image, "restart_policy": "always", "ports": [{"container": 80}]});
    let instance = client.create_running(body).await;
    let (id, port) = (instance["id"].as_str().unwrap(), instance["ports"][0]["host"].as_u64().unwrap());
    let before = containers(&cluster).await;
    let renamed = format!("renamed-{id}");
    docker(&cluster, &["rename", &format!("app-{id}"), &renamed]);

    docker(&cluster, &["kill", &renamed]);
    poll_until("running again", POLL_TIMEOUT, async || {
        let instance = client.get(&format!("/instances/{id}")).await.body;
        (instance["restart_count"] == 1 && instance["status"] == "running").then_some(())
    })
    .await;
    assert_eq!(containers(&cluster).await, before, "the same one, and no other");

    client.delete_fully(id).await;
    assert_eq!(containers(&cluster).await, Vec::<String>::new());
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, u16::try_from(port).unwrap())).expect("its port is free");
}

#[tokio::test(flavor = "multi_thread")]
async fn orphan_under_a_foreign_name_is_removed_and_counted_once() {
    let Some(mut cluster) = Cluster::docker("orphan_under_a_foreign_name_is_removed_and_counted_once").await else {
        return;
    };
    cluster.set("APP_ORPHAN_GRACE_MS", 500);
    let worker = cluster.work();

    wait_for_collection(&cluster).await;
    // A later round removes another orphan, and nothing that was removed already.
    wait_for_collection(&cluster).await;

    let removed = poll_until("both are counted", POLL_TIMEOUT, async || {
        metric(&worker, "host_orphans_removed_total").await.filter(|removed| *removed > 1.5)
    })
    .await;

    assert_eq!(removed, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_keeps_foreign_network_and_container_with_our_names() {
    let Some(cluster) = Cluster::docker("delete_keeps_foreign_network_and_container_with_our_names").await else {
        return;
    };
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let instance = client.create_running(json!({"image": cluster.image})).await;
    let (id, network) = (instance["id"].as_str().unwrap(), instance["network"]["id"].as_str().unwrap());
    let (container, network) = (format!("app-{id}"), format!("app-{network}"));
    docker(&cluster, &["rm", "-f", &container]);
    client.wait_for(id, "stopped").await;
    docker(&cluster, &["network", "rm", &network]);
    docker(&cluster, &["network", "create", "--subnet", "10.99.253.0/24", &network]);
    docker(&cluster, &["run", "-d", "--name", &container, "--network", &network, &cluster.image, "sleep", "600"]);

    client.delete_fully(id).await;

    assert_eq!(inspect(&cluster, &container)["State"]["Running"], true);
    // A provision needs that network, and fails with the reason.
    let accepted = client.post("/instances", json!({"image": cluster.image})).await.expect(202);
    let job = client.wait_for_job(&accepted.job()).await;
    assert_eq!(job["error"]["code"], "network_setup_failed", "{job}");
    client.delete_fully(&accepted.instance()).await;
    // Purge leaves it alone too.
    let output = cluster.run(&["purge", "--yes"]);
    assert!(output.contains("0 containers") && output.contains("0 networks"), "{output}");
    docker(&cluster, &["rm", "-f", &container]);
    docker(&cluster, &["network", "rm", &network]);
}
