//! Containers that belong to no instance, and hosts that send no heartbeats.

use std::{net::Ipv4Addr, path::Path, time::Duration};

use app::{
    backend::{
        Attempt, Compute, ContainerSpec, Network, NetworkAttachment, NetworkPlan,
        simulated::{SimulatedCompute, Simulation},
    },
    core::id::{ClusterId, HostId, InstanceId, JobId, NetworkId},
};
use nix::sys::signal::Signal;
use serde_json::json;
use time::OffsetDateTime;

use crate::support::{Cluster, poll_until};

/// Creates a container as the worker of this host would, but without an instance row.
async fn create_container(state_dir: &Path, cluster: ClusterId, host: HostId) -> (SimulatedCompute, InstanceId) {
    let simulation = Simulation { state_dir: state_dir.to_owned(), latency: Duration::ZERO, fail_rate: 0.0, seed: 1 };
    let compute = SimulatedCompute::open(&simulation, cluster).unwrap();
    let spec = ContainerSpec {
        instance: InstanceId::new(),
        generation: 1,
        made_by: Attempt { job: JobId::new(), token: 1 },
        host,
        image: "web:1".into(),
        command: None,
        env: [].into(),
        cpu_millis: 100,
        memory_mib: 64,
    };
    let network = NetworkPlan { id: NetworkId::new(), cidr: "10.9.0.0/24".parse().unwrap() };
    compute.network().ensure_network(&network).await.unwrap();
    let attachment = NetworkAttachment {
        network,
        address: Ipv4Addr::new(10, 9, 0, 2),
        mac: "02:00:00:00:00:02".into(),
        ports: Vec::new(),
    };
    compute.create(&spec, &attachment).await.unwrap();
    compute.start(spec.instance).await.unwrap();
    (compute, spec.instance)
}

#[tokio::test(flavor = "multi_thread")]
async fn orphan_is_removed_after_its_grace_only_in_its_cluster() {
    const GRACE: Duration = Duration::from_secs(6);
    let mut cluster = Cluster::simulated().await;
    cluster.set("APP_ORPHAN_GRACE_MS", GRACE.as_millis());
    let id = ClusterId::from(cluster.id().await);
    let (_api, client) = cluster.serve();
    let worker = cluster.work();
    let host: uuid::Uuid = cluster.sql().await.query_one("select id from hosts", &[]).await.unwrap().get(0);
    let (theirs, stranger) = create_container(cluster.state.path(), ClusterId::new(), host.into()).await;
    let (_, foreign) = create_container(cluster.state.path(), id, HostId::new()).await;
    // The container is labelled with this host, and its row is placed on another one.
    let moved = client.create_running(json!({"image": "web:1"})).await;
    let moved: InstanceId = moved["id"].as_str().unwrap().parse().unwrap();
    let elsewhere = "with h as (insert into hosts (id, name, cpu_millis, memory_mib, labels) select gen_random_uuid(), 'h2', cpu_millis, memory_mib, labels
                                from hosts where id = $1 returning id)
                     update instances set host_id = (select id from h) where id = $2";
    cluster.sql().await.execute(elsewhere, &[&host, &moved.uuid()]).await.unwrap();
    let (ours, orphan) = create_container(cluster.state.path(), id, host.into()).await;
    let created_at = ours.inspect(orphan).await.unwrap().unwrap().created_at;
    let owned = client.create_running(json!({"image": "web:1"})).await;
    assert!(ours.inspect(orphan).await.unwrap().is_some(), "removed before its grace was over");

    poll_until("the orphan removed", Duration::from_secs(60), async || {
        ours.inspect(orphan).await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(OffsetDateTime::now_utc() - created_at >= GRACE, "before its grace was over");
    poll_until("its network released", Duration::from_secs(60), async || {
        // The other network is used by the foreign host's container.
        (ours.network().networks().await.unwrap().len() == 2).then_some(())
    })
    .await;
    assert!(ours.inspect(foreign).await.unwrap().is_some(), "a container of another host was removed");
    assert!(ours.inspect(moved).await.unwrap().is_some(), "its row is placed on another host");
    let is_alarm = |line: &str| line.contains("belongs to another host") && line.contains(&moved.to_string());
    assert!(worker.log().lines().any(is_alarm), "{}", worker.log());
    assert!(theirs.inspect(stranger).await.unwrap().is_some(), "a container of another cluster was removed");
    assert_eq!(theirs.network().networks().await.unwrap().len(), 1);
    let owned = owned["id"].as_str().unwrap();
    assert!(ours.inspect(owned.parse().unwrap()).await.unwrap().is_some());
    assert_eq!(client.get(&format!("/instances/{owned}")).await.body["status"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_of_a_silent_host_are_unknown_until_it_returns() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let worker = cluster.work();

    let instance = client.create_running(json!({"image": "web:1"})).await;
    let id = instance["id"].as_str().unwrap();
    worker.signal(Signal::SIGSTOP);
    let unknown = client.wait_for(id, "unknown").await;
    assert_eq!(
        (&unknown["status"], &unknown["status_reason"]["code"]),
        (&json!("unknown"), &json!("host_lost")),
        "{unknown}"
    );

    worker.signal(Signal::SIGCONT);
    let back = client.wait_for(id, "running").await;
    assert_eq!((&back["status"], &back["status_reason"]), (&json!("running"), &json!(null)), "{back}");
    assert_eq!(back["restart_count"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn second_worker_of_the_same_host_name_refuses_to_start() {
    let mut cluster = Cluster::simulated().await;
    let worker = cluster.work();

    let elsewhere = cluster.state.path().join("elsewhere");
    cluster.set("APP_STATE_DIR", elsewhere.display());
    let mut second = cluster.spawn("work");
    assert_ne!(second.wait().code(), Some(0));

    second.line("APP_HOST_NAME");
    assert!(!worker.log().contains("lease lost"));
}
