//! Instances on real Docker, from the request to the container.

use std::{collections::HashSet, process::Command, time::Duration};

use futures_util::future;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::page::page;
use crate::support::{Client, Cluster, MiscountingEngine, poll_until};

#[tokio::test(flavor = "multi_thread")]
async fn fifty_concurrent_instances_run_answer_and_leave_nothing() {
    let Some(cluster) = Cluster::docker("fifty_concurrent_instances_run_answer_and_leave_nothing").await else {
        return;
    };
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let clients = (0..10).map(|_| async {
        let client = Client::new(&client.base, &client.key);
        let one = |_| client.create_running(json!({"image": cluster.image, "ports": [{"container": 80}]}));
        future::join_all((0..5).map(one)).await
    });
    let instances = future::join_all(clients).await.concat();
    let distinct = |pointer: &str| -> HashSet<String> {
        instances.iter().map(|instance| instance.pointer(pointer).unwrap().to_string()).collect()
    };
    assert_eq!(instances.len(), 50);
    assert_eq!(distinct("/network/address").len(), 50);
    assert_eq!(distinct("/network/mac").len(), 50);
    assert_eq!(distinct("/ports/0/host").len(), 50);
    let in_docker = cluster.in_docker().await;
    assert_eq!(in_docker.iter().filter(|line| line.starts_with("ps ")).count(), 50, "{in_docker:?}");
    for text in future::join_all(instances.iter().map(page)).await {
        assert!(text.contains("It runs"), "{text}");
    }

    let ids = instances.iter().map(|instance| instance["id"].as_str().unwrap());
    future::join_all(ids.map(|id| client.delete_fully(id))).await;
    // The network is removed with its last container.
    poll_until("nothing of ours in Docker", Duration::from_secs(60), async || {
        cluster.in_docker().await.is_empty().then_some(())
    })
    .await;
    let sql = cluster.sql().await;
    for table in ["addresses", "published_ports"] {
        let left: i64 = sql.query_one(&format!("select count(*) from {table}"), &[]).await.unwrap().get(0);
        assert_eq!(left, 0, "{table}");
    }
    // Workers also read the messages of jobs that a poll had found.
    poll_until("no lists in Redis", Duration::from_secs(60), async || {
        cluster.in_redis("wakeups:").await.is_empty().then_some(())
    })
    .await;
    let unfinished = "select count(*) from jobs where status in ('queued', 'running')";
    assert_eq!(sql.query_one(unfinished, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_killed_during_provision_leaves_one_running_container() {
    let Some(cluster) = Cluster::docker("worker_killed_during_provision_leaves_one_running_container").await else {
        return;
    };
    let (_api, client) = cluster.serve();
    for _ in 0..5 {
        let worker = cluster.work();
        let body = json!({"image": cluster.image, "ports": [{"container": 80}]});
        let id = client.post("/instances", body).await.instance();
        // The container exists; its start, its ports and the job's end do not.
        let exists = async || (!containers(&cluster).await.is_empty()).then_some(());
        poll_until("a container", Duration::from_secs(60), exists).await;
        worker.kill();
        let before = containers(&cluster).await;

        let worker = cluster.work();
        let instance = client.wait_for(&id, "running").await;
        assert_eq!(instance["status"], "running", "{instance}");
        assert!(page(&instance).await.contains("It runs"));
        assert_eq!(containers(&cluster).await, before, "the same container was adopted");
        let job = client.wait_for_job(instance["job_id"].as_str().unwrap()).await;
        assert_eq!(job["attempt"], 1, "a crash is not an attempt: {job}");
        client.delete_fully(&id).await;
        if job["crashes"] == 1 {
            return;
        }
        // The job had ended, so this kill was too late to show anything.
        assert_eq!(job["crashes"], 0, "{job}");
        worker.kill();
    }
    panic!("killed too late each time");
}

#[tokio::test(flavor = "multi_thread")]
async fn container_runs_exactly_what_the_spec_requests() {
    let Some(cluster) = Cluster::docker("container_runs_exactly_what_the_spec_requests").await else { return };
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let request = json!({
        "name": "exact", "image": cluster.image, "command": ["/bin/sleep", "600"], "env": {"GREETING": "hello = world"},
        "cpu_millis": 2500, "memory_mib": 48, "ports": [{"container": 80}, {"container": 53, "protocol": "udp"}],
    });
    let instance = client.create_running(request).await;
    let id = instance["id"].as_str().unwrap();
    let container = inspect(&cluster, &format!("app-{id}"));
    let host = &container["HostConfig"];
    assert_eq!(container["Config"]["Cmd"], json!(["/bin/sleep", "600"]));
    assert!(container["Config"]["Env"].as_array().unwrap().contains(&json!("GREETING=hello = world")));
    assert_eq!((&host["CpuQuota"], &host["CpuPeriod"]), (&json!(250_000), &json!(100_000)));
    let memory = json!(48 * 1024 * 1024);
    assert_eq!((&host["Memory"], &host["MemorySwap"]), (&memory, &memory));
    assert_eq!(host["PidsLimit"], 512);
    assert_eq!(host["SecurityOpt"], json!(["no-new-privileges"]));
    assert_eq!((&host["CapDrop"], &host["Privileged"]), (&json!(["NET_RAW"]), &json!(false)));
    assert_eq!(host["RestartPolicy"]["Name"], "no");
    assert_eq!(
        (&host["LogConfig"]["Type"], &host["LogConfig"]["Config"]["max-size"]),
        (&json!("json-file"), &json!("10m"))
    );
    let labels = &container["Config"]["Labels"];
    assert_eq!((&labels["app.instance"], &labels["app.generation"]), (&json!(id), &json!("1")));
    assert_eq!(labels["app.job"], instance["job_id"]);
    let network = container["NetworkSettings"]["Networks"].as_object().unwrap();
    assert_eq!(network.len(), 1);
    let (name, endpoint) = network.iter().next().unwrap();
    assert_eq!(name, &format!("app-{}", instance["network"]["id"].as_str().unwrap()));
    assert_eq!(endpoint["IPAddress"], instance["network"]["address"]);
    assert_eq!(endpoint["MacAddress"], instance["network"]["mac"]);
    let published = &container["NetworkSettings"]["Ports"]["53/udp"][0]["HostPort"];
    assert_eq!(published.as_str().unwrap(), instance["ports"][1]["host"].to_string());

    // Without a command the image's own runs: the other tests fetch its page.
    client.delete_fully(id).await;
    assert_eq!(containers(&cluster).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn unavailable_image_fails_for_good_and_leaves_nothing() {
    let Some(mut cluster) = Cluster::docker("unavailable_image_fails_for_good_and_leaves_nothing").await else {
        return;
    };

    let registry = empty_registry().await;
    cluster.set("APP_REGISTRIES", format!("{registry}, 127.0.0.1:1"));
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();

    for (image, code) in
        [(format!("{registry}/web:1"), "image_not_found"), ("127.0.0.1:1/web:1".into(), "image_pull_failed")]
    {
        let accepted =
            client.post("/instances", json!({"image": image, "ports": [{"container": 80}]})).await.expect(202);
        let job = client.wait_for_job(&accepted.job()).await;
        assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!(code)), "{job}");
        assert_eq!(job["attempt"], 1, "it is not tried eight times");
        let instance = client.get(&format!("/instances/{}", accepted.instance())).await.body;
        assert_eq!((&instance["status"], &instance["status_reason"]["code"]), (&json!("failed"), &json!(code)));
        assert_eq!(cluster.in_docker().await, Vec::<String>::new());
        client.delete_fully(&accepted.instance()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_container_is_noticed_in_seconds_and_policy_applied() {
    let Some(mut cluster) = Cluster::docker("ended_container_is_noticed_in_seconds_and_policy_applied").await else {
        return;
    };
    // Only events can be this fast: the periodic comparison comes too late.
    cluster.set("APP_RECHECK_MS", 600_000);
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let accepted =
        client.post("/instances", json!({"image": cluster.image, "command": ["/bin/true"]})).await.expect(202);
    let ended = client.wait_for(&accepted.instance(), "stopped").await;
    assert_eq!((&ended["status"], &ended["exit_code"]), (&json!("stopped"), &json!(0)), "{ended}");
    assert_ne!(ended["started_at"], json!(null), "it did run");
    assert_eq!(client.wait_for_job(&accepted.job()).await["status"], "succeeded");

    let kept = client.create_running(json!({"image": cluster.image, "restart_policy": "always"})).await;
    let id = kept["id"].as_str().unwrap();
    docker(&cluster, &["kill", &format!("app-{id}")]);
    let again = poll_until("a restart", Duration::from_secs(60), async || {
        let instance = client.get(&format!("/instances/{id}")).await.body;
        (instance["restart_count"] == 1 && instance["status"] == "running").then_some(instance)
    })
    .await;
    assert_ne!(again["started_at"], kept["started_at"]);
    // A container that was removed by hand is created again.
    docker(&cluster, &["rm", "-f", &format!("app-{id}")]);
    poll_until("another container", Duration::from_secs(60), async || {
        let instance = client.get(&format!("/instances/{id}")).await.body;
        (instance["restart_count"] == 2 && instance["status"] == "running").then_some(())
    })
    .await;
    assert_eq!(inspect(&cluster, &format!("app-{id}"))["State"]["Running"], true);

    let crashing = json!({"image": cluster.image, "command": ["/bin/false"], "restart_policy": "on_failure"});
    let id = client.post("/instances", crashing).await.instance();
    let failed = client.wait_for(&id, "failed").await;
    assert_eq!(
        (&failed["status"], &failed["status_reason"]["code"]),
        (&json!("failed"), &json!("crash_loop")),
        "{failed}"
    );
    assert_eq!((&failed["exit_code"], &failed["restart_count"]), (&json!(1), &json!(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn container_that_cannot_start_fails_with_cause_and_is_undone() {
    let Some(cluster) = Cluster::docker("container_that_cannot_start_fails_with_cause_and_is_undone").await else {
        return;
    };
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let accepted =
        client.post("/instances", json!({"image": cluster.image, "command": ["/no/such/program"]})).await.expect(202);
    let job = client.wait_for_job(&accepted.job()).await;
    assert_eq!(job["error"]["code"], "container_start_failed", "{job}");
    assert_eq!(job["steps"].as_array().unwrap().last().unwrap()["status"], "undone");
    assert_eq!(cluster.in_docker().await, Vec::<String>::new());

    // Another process has the port: the job's error names the cause, and the container is removed.
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut other = Cluster::docker("container_that_cannot_start_fails_with_cause_and_is_undone").await.unwrap();
    other.set("APP_PORT_RANGE", format!("{port}-{port}"));
    let (_api, client) = other.serve();
    let _worker = other.work();
    let accepted =
        client.post("/instances", json!({"image": other.image, "ports": [{"container": 80}]})).await.expect(202);
    let job = client.wait_for_job(&accepted.job()).await;
    assert_eq!(job["error"]["code"], "port_conflict", "{job}");
    assert_eq!(other.in_docker().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn instance_deleted_during_provision_leaves_nothing() {
    let Some(cluster) = Cluster::docker("instance_deleted_during_provision_leaves_nothing").await else { return };
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();

    let delete_when = async |status: &'static str| {
        let id =
            client.post("/instances", json!({"image": cluster.image, "ports": [{"container": 80}]})).await.instance();
        client.wait_for(&id, status).await;
        client.delete_fully(&id).await;
    };
    future::join_all([delete_when("pending"), delete_when("provisioning"), delete_when("running")]).await;

    poll_until("nothing in Docker", Duration::from_secs(60), async || {
        cluster.in_docker().await.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_removes_only_its_own_cluster() {
    let Some(ours) = Cluster::docker("purge_removes_only_its_own_cluster").await else { return };
    let theirs = Cluster::docker("purge_removes_only_its_own_cluster").await.unwrap();

    for cluster in [&ours, &theirs] {
        let (_api, client) = cluster.serve();
        let worker = cluster.work();
        client.create_running(json!({"image": cluster.image})).await;
        assert!(worker.terminate().success());
    }
    let untouched = theirs.in_docker().await;

    assert_eq!(untouched.len(), 2, "a container and a network: {untouched:?}");

    let output = ours.run(&["purge", "--yes"]);
    assert!(output.contains("1 containers") && output.contains("1 networks"), "{output}");
    assert_eq!(ours.in_docker().await, Vec::<String>::new());
    assert_eq!(theirs.in_docker().await, untouched);
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_reports_networks_that_a_miscounting_engine_keeps() {
    let Some(mut cluster) = Cluster::docker("purge_reports_networks_that_a_miscounting_engine_keeps").await else {
        return;
    };
    let (_api, client) = cluster.serve();
    let worker = cluster.work();

    client.create_running(json!({"image": cluster.image})).await;
    assert!(worker.terminate().success());

    let engine = cluster.docker_host.clone().unwrap();
    let miscounting = MiscountingEngine::before(&engine).await;
    cluster.docker_host = Some(miscounting.host.clone());
    let output = cluster.run(&["purge", "--yes"]);
    assert!(output.contains("removed container") && output.contains("kept network"), "{output}");
    assert!(output.contains("until Docker is restarted"), "{output}");

    cluster.docker_host = Some(engine);
    assert_eq!(cluster.in_docker().await.len(), 1, "the network");

    // After a restart has corrected the count, the network can be removed.
    let output = cluster.run(&["purge", "--yes"]);
    assert!(output.contains("0 containers") && output.contains("removed network"), "{output}");
    assert_eq!(cluster.in_docker().await, Vec::<String>::new());
}

pub async fn containers(cluster: &Cluster) -> Vec<String> {
    cluster.in_docker().await.into_iter().filter(|line| line.starts_with("ps ")).collect()
}

pub fn docker(cluster: &Cluster, arguments: &[&str]) -> String {
    let host = cluster.docker_host.as_deref().unwrap();
    let output = Command::new("docker").args(["-H", host]).args(arguments).output().unwrap();
    assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn inspect(cluster: &Cluster, container: &str) -> Value {
    serde_json::from_str::<Vec<Value>>(&docker(cluster, &["inspect", container])).unwrap().remove(0)
}

/// Starts a registry that responds and has no image. Docker uses any registry on loopback without TLS.
async fn empty_registry() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.ok()?);
                }
                let (status, body) = if request.starts_with(b"GET /v2/ ") {
                    ("200 OK", "{}")
                } else {
                    ("404 Not Found", r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#)
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
                    body.len()
                );
                stream.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes()).await.ok()
            });
        }
    });
    address.to_string()
}
