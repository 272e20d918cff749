//! The simulated backend: the conformance suite, and the behaviour on which the worker's tests rely.

use std::{collections::HashMap, fs, path::Path, time::Duration};

use app::{
    backend::{
        BackendError, Compute, ContainerState, Network,
        simulated::{SimulatedCompute, Simulation},
    },
    core::id::ClusterId,
};
use futures_util::StreamExt;
use serde_json::Value;

use super::conformance::{attachment, conformance, container_spec, network, taken_name_is_reported};

const IMAGE: &str = "app-demo:1";

fn simulation(state_dir: &Path) -> Simulation {
    Simulation { state_dir: state_dir.to_owned(), latency: Duration::from_millis(2), fail_rate: 0.0, seed: 1 }
}

fn ledger(state_dir: &Path, cluster: ClusterId) -> Vec<Value> {
    let file = state_dir.join("simulated").join(cluster.to_string()).join("ledger.log");
    let text = fs::read_to_string(file).expect("the ledger");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test]
async fn simulated_backend_passes_the_conformance_suite() {
    let directory = tempfile::tempdir().expect("a directory");
    let open = || SimulatedCompute::open(&simulation(directory.path()), ClusterId::new()).expect("open");
    let (compute, stranger) = (open(), open());
    conformance(&compute, &compute.network(), &stranger, IMAGE).await;
    taken_name_is_reported(&compute, &stranger, &stranger.network(), IMAGE).await;
}

#[tokio::test]
async fn images_can_be_missing_or_unreachable() {
    let directory = tempfile::tempdir().expect("a directory");
    let compute = SimulatedCompute::open(&simulation(directory.path()), ClusterId::new()).expect("open");
    let missing = compute.ensure_image("missing/x:1", &|_| ()).await;
    assert!(matches!(missing, Err(BackendError::ImageNotFound(_))), "{missing:?}");
    let unreachable = compute.ensure_image("unreachable/x:1", &|_| ()).await;
    assert!(matches!(unreachable, Err(BackendError::ImagePullFailed(_))), "{unreachable:?}");
}

#[tokio::test]
async fn reopened_backend_finds_containers_and_ledger_counts_effects() {
    let directory = tempfile::tempdir().expect("a directory");
    let cluster = ClusterId::new();
    let open = || SimulatedCompute::open(&simulation(directory.path()), cluster).expect("open");
    let (container_spec, wires) = (container_spec(IMAGE, None), attachment(&network(), 10));
    let before = open();
    let container = before.create(&container_spec, &wires).await.expect("create");
    before.start(container_spec.instance).await.expect("start");
    drop(before);

    let after = open();
    assert_eq!(after.create(&container_spec, &wires).await.expect("adopt"), container);
    after.start(container_spec.instance).await.expect("running already");
    assert_eq!(after.list().await.expect("list")[0].state, ContainerState::Running);
    assert_eq!(after.network().networks().await.expect("networks"), [wires.network.id]);
    after.remove(container_spec.instance).await.expect("remove");
    after.remove(container_spec.instance).await.expect("remove again");

    let lines = ledger(directory.path(), cluster);
    let ops: Vec<_> = lines.iter().map(|line| line["op"].as_str().expect("an op")).collect();
    assert_eq!(ops, ["create", "start", "rm"]);
    assert_eq!(lines[0]["instance"], container_spec.instance.to_string());
    assert_eq!(lines[0]["job"], container_spec.made_by.job.to_string());
    assert_eq!((&lines[0]["generation"], &lines[0]["token"]), (&Value::from(1), &Value::from(1)));
    assert_eq!(lines[0]["pid"], std::process::id());
}

#[tokio::test]
async fn exit_file_ends_a_container() {
    let directory = tempfile::tempdir().expect("a directory");
    let cluster = ClusterId::new();
    let compute = SimulatedCompute::open(&simulation(directory.path()), cluster).expect("open");
    let (container_spec, wires) = (container_spec(IMAGE, None), attachment(&network(), 10));
    compute.create(&container_spec, &wires).await.expect("create");
    compute.start(container_spec.instance).await.expect("start");
    let mut changes = compute.changes();
    let instances = directory.path().join("simulated").join(cluster.to_string()).join("instances");
    fs::write(instances.join(format!("{}.exit", container_spec.instance)), "137\n").expect("write");
    let change = tokio::time::timeout(Duration::from_secs(60), changes.next()).await.expect("in time");

    assert_eq!(change.expect("a change").expect("no error").instance, container_spec.instance);

    let seen = compute.inspect(container_spec.instance).await.expect("inspect").expect("a container");
    assert_eq!(seen.state, ContainerState::Exited { exit_code: 137, oom_killed: false });
}

#[tokio::test]
async fn retries_get_through_failures_with_one_effect_each() {
    let directory = tempfile::tempdir().expect("a directory");
    let cluster = ClusterId::new();
    let rough = Simulation { fail_rate: 0.5, latency: Duration::ZERO, ..simulation(directory.path()) };
    let compute = SimulatedCompute::open(&rough, cluster).expect("open");
    let network = network();
    let mut specs = Vec::new();
    for _ in 0..1000 {
        let (container_spec, wires) = (container_spec(IMAGE, None), attachment(&network, 10));
        while compute.create(&container_spec, &wires).await.is_err() {}
        while compute.start(container_spec.instance).await.is_err() {}
        specs.push(container_spec);
    }

    assert_eq!(compute.list().await.expect("list").len(), 1000);

    for container_spec in &specs {
        while compute.remove(container_spec.instance).await.is_err() {}
    }
    while compute.network().release_network(network.id).await.is_err() {}
    assert_eq!(compute.network().networks().await.expect("networks"), []);

    let mut effects = HashMap::new();
    for line in ledger(directory.path(), cluster) {
        *effects.entry((line["op"].to_string(), line["instance"].to_string())).or_insert(0) += 1;
    }
    assert_eq!(effects.len(), 3000);
    assert!(effects.values().all(|count| *count == 1));
}
