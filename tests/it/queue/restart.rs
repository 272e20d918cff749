//! Containers that end by themselves: the restart policy, the growing pauses, and the limit of restarts.

use std::{fs, net::Ipv4Addr, time::Duration};

use app::{
    backend::{
        Attempt, Compute, ContainerSpec, ContainerState, NetworkAttachment, NetworkPlan,
        simulated::{SimulatedCompute, Simulation},
    },
    core::id::{HostId, InstanceId, JobId, NetworkId},
};
use serde_json::{Value, json};

use super::simulated_host::instances_dir;
use crate::support::{Client, Cluster, poll_until};

const POLL_TIMEOUT: Duration = Duration::from_secs(60);

/// Lets the instance's process end.
fn end_process(cluster: &Cluster, instance: &Value, exit_code: i64) {
    let file = instances_dir(cluster.state.path()).join(format!("{}.exit", instance["id"].as_str().unwrap()));
    fs::write(file, exit_code.to_string()).unwrap();
}

async fn wait_for_restart(client: &Client, instance: &Value, times: i64) -> Value {
    let path = format!("/instances/{}", instance["id"].as_str().unwrap());
    poll_until("running again", POLL_TIMEOUT, async || {
        let instance = client.get(&path).await.expect(200).body;
        (instance["restart_count"] == times && instance["status"] == "running").then_some(instance)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_policy_decides_whether_an_ended_process_restarts() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let run = async |policy: &str| client.create_running(json!({"image": "web:1", "restart_policy": policy})).await;
    let stopped = async |instance: &Value| client.wait_for(instance["id"].as_str().unwrap(), "stopped").await;

    let never = run("no").await;
    end_process(&cluster, &never, 3);
    let never = stopped(&never).await;
    assert_eq!(
        (&never["status"], &never["exit_code"], &never["restart_count"]),
        (&json!("stopped"), &json!(3), &json!(0))
    );
    assert_eq!(never["status_reason"]["code"], "container_exited", "{never}");

    let on_failure = run("on_failure").await;
    end_process(&cluster, &on_failure, 1);
    let again = wait_for_restart(&client, &on_failure, 1).await;
    assert_eq!(again["exit_code"], json!(null), "{again}");
    end_process(&cluster, &on_failure, 0);
    let on_failure = stopped(&on_failure).await;
    assert_eq!((&on_failure["exit_code"], &on_failure["restart_count"]), (&json!(0), &json!(1)), "{on_failure}");

    let always = run("always").await;
    for (times, exit_code) in [(1, 0), (2, 1), (3, 0)] {
        end_process(&cluster, &always, exit_code);
        wait_for_restart(&client, &always, times).await;
    }
    // All restarts used the same container, and it can still be deleted.
    client.delete_fully(always["id"].as_str().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_loop_fails_after_five_restarts_with_backoff() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();

    let body = json!({"image": "web:1", "command": ["/bin/false"], "restart_policy": "always"});
    let id = client.post("/instances", body).await.instance();
    let instance = client.wait_for(&id, "failed").await;
    assert_eq!(
        (&instance["status"], &instance["status_reason"]["code"]),
        (&json!("failed"), &json!("crash_loop")),
        "{instance}"
    );
    assert_eq!((&instance["restart_count"], &instance["exit_code"]), (&json!(5), &json!(1)), "{instance}");

    let sql = cluster.sql().await;
    let pauses = "select extract(epoch from run_at - created_at)::float8 from jobs where kind = 'start' order by seq";
    let pauses: Vec<f64> = sql.query(pauses, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(pauses.iter().map(|pause| (pause * 10.0).round()).collect::<Vec<_>>(), [1.0, 2.0, 4.0, 8.0, 16.0]);
}

/// To fail an instance while its container runs, or before it ran, takes several crashes: one statement sets the status
/// instead.
#[tokio::test(flavor = "multi_thread")]
async fn failed_instance_keeps_a_stopped_container_that_ran() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("APP_RECHECK_MS", 200);
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let simulation =
        Simulation { state_dir: cluster.state.path().into(), latency: Duration::ZERO, fail_rate: 0.0, seed: 1 };
    let compute = SimulatedCompute::open(&simulation, cluster.id().await.into()).unwrap();
    let state = async |id: InstanceId| compute.inspect(id).await.unwrap().map(|container| container.state);
    let sql = cluster.sql().await;
    let fail = async |id: InstanceId| {
        sql.execute("update instances set status = 'failed' where id = $1", &[&id.uuid()]).await.unwrap();
    };
    let run = async || -> InstanceId {
        client.create_running(json!({"image": "web:1"})).await["id"].as_str().unwrap().parse().unwrap()
    };
    let ended = client.create_running(json!({"image": "web:1"})).await;
    end_process(&cluster, &ended, 3);
    let ended: InstanceId =
        client.wait_for(ended["id"].as_str().unwrap(), "stopped").await["id"].as_str().unwrap().parse().unwrap();
    let (running, created) = (run().await, run().await);

    fail(ended).await;
    fail(running).await;
    poll_until("it is stopped", POLL_TIMEOUT, async || {
        matches!(state(running).await?, ContainerState::Exited { .. }).then_some(())
    })
    .await;
    fail(created).await;
    compute.remove(created).await.unwrap();
    let never_ran = ContainerSpec {
        instance: created,
        generation: 1,
        made_by: Attempt { job: JobId::new(), token: 1 },
        host: HostId::new(),
        image: "web:1".into(),
        command: None,
        env: [].into(),
        cpu_millis: 100,
        memory_mib: 64,
    };
    let network = NetworkPlan { id: NetworkId::new(), cidr: "10.9.0.0/24".parse().unwrap() };
    let (address, mac) = (Ipv4Addr::new(10, 9, 0, 2), "02:00:00:00:00:02".to_owned());
    compute.create(&never_ran, &NetworkAttachment { network, address, mac, ports: Vec::new() }).await.unwrap();

    poll_until("one that never ran is removed", POLL_TIMEOUT, async || state(created).await.is_none().then_some(()))
        .await;
    assert!(matches!(state(running).await, Some(ContainerState::Exited { .. })));
    assert_eq!(state(ended).await, Some(ContainerState::Exited { exit_code: 3, oom_killed: false }));
}

#[tokio::test(flavor = "multi_thread")]
async fn command_that_ends_at_once_succeeds_and_stops_its_instance() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();

    let answer = client.post("/instances", json!({"image": "web:1", "command": ["true"]})).await.expect(202);
    assert_eq!(client.wait_for_job(&answer.job()).await["status"], "succeeded");

    let stopped = client.wait_for(&answer.instance(), "stopped").await;
    assert_eq!((&stopped["status"], &stopped["exit_code"]), (&json!("stopped"), &json!(0)), "{stopped}");

    let sql = cluster.sql().await;
    let query = "select array_agg(kind order by id) from events where instance_id::text = $1";
    let events: Vec<String> = sql.query_one(query, &[&answer.instance()]).await.unwrap().get(0);
    assert_eq!(events, ["instance.accepted", "instance.running", "instance.stopped"]);
}
