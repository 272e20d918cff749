//! The Docker backend on a real engine: the conformance suite, and what only a real engine shows.
//!
//! Needs `TEST_DOCKER_HOST`, and in `TEST_DEMO_IMAGE` an image (default `app-demo:1`) that serves HTTP on port 80.
//! Without an engine the tests print `SKIPPED`; with `REQUIRE_REAL=1` they fail instead.

use std::{
    env,
    io::Write,
    net::{Ipv4Addr, TcpListener},
    process::Command,
    time::{Duration, Instant},
};

use app::{
    backend::{
        BackendError, Compute, ContainerSpec, ContainerState, Network, NetworkAttachment, NetworkPlan, Released,
        docker::{DockerCompute, DockerNetwork},
    },
    core::id::{ClusterId, NetworkId},
};
use futures_util::{StreamExt, future};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::conformance::{attachment, conformance, container_spec, network, taken_name_is_reported};

struct Engine {
    host: String,
    image: String,
}

impl Engine {
    fn cluster(&self) -> (DockerCompute, DockerNetwork) {
        let compute = DockerCompute::connect(Some(&self.host), ClusterId::new()).expect("a host");
        let networks = compute.network();
        (compute, networks)
    }

    /// Runs the docker command, as an operator does, and returns standard output.
    fn docker(&self, arguments: &[&str]) -> String {
        let output = Command::new("docker").args(["-H", &self.host]).args(arguments).output().expect("docker");
        assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    }

    /// Builds an image like the demo's, with an anonymous volume at `/data`.
    fn image_with_volume(&self, image: &str) {
        let made = self.docker(&["create", &self.image]);
        self.docker(&["commit", "--change", "VOLUME /data", &made, image]);
        self.docker(&["rm", &made]);
    }
}

fn engine(test: &str) -> Option<Engine> {
    match env::var("TEST_DOCKER_HOST") {
        Ok(host) if !host.is_empty() => {
            Some(Engine { host, image: env::var("TEST_DEMO_IMAGE").unwrap_or_else(|_| "app-demo:1".to_owned()) })
        }
        _ => {
            let required = env::var("REQUIRE_REAL").is_ok_and(|value| value == "1");
            assert!(!required, "{test}: REQUIRE_REAL=1, but TEST_DOCKER_HOST is not set");
            // `eprintln!` would not reach the terminal: the test harness captures it.
            writeln!(std::io::stderr(), "SKIPPED {test}: no Docker").expect("stderr");
            None
        }
    }
}

#[tokio::test]
async fn docker_backend_passes_the_conformance_suite() {
    let Some(engine) = engine("docker_backend_passes_the_conformance_suite") else { return };

    let ((compute, networks), (stranger, theirs)) = (engine.cluster(), engine.cluster());
    assert!(!compute.version().await.expect("a version").is_empty());

    conformance(&compute, &networks, &stranger, &engine.image).await;
    taken_name_is_reported(&compute, &stranger, &theirs, &engine.image).await;
    for network in networks.networks().await.expect("networks") {
        networks.release_network(network).await.expect("release");
    }
}

#[tokio::test]
async fn concurrent_containers_each_answer_on_their_port() {
    let Some(engine) = engine("concurrent_containers_each_answer_on_their_port") else { return };

    let (compute, networks) = engine.cluster();
    let network = network();
    let began = (0..20).map(|n| {
        let (compute, networks, network, image) = (&compute, &networks, &network, &engine.image);
        async move {
            let (container_spec, wires) = (container_spec(image, None), attachment(network, 10 + n));
            networks.ensure_network(network).await.expect("a network");
            compute.create(&container_spec, &wires).await.expect("create");
            compute.start(container_spec.instance).await.expect("start");
            networks.publish(container_spec.instance, &wires).await.expect("publish");
            assert!(serves_page(wires.ports[0].host).await);
            container_spec.instance
        }
    });
    let instances = future::join_all(began).await;

    assert_eq!(compute.list().await.expect("list").len(), 20);

    let ended = instances.into_iter().map(|instance| {
        let (compute, networks, network) = (&compute, &networks, &network);
        async move {
            compute.remove(instance).await.expect("remove");
            networks.release_network(network.id).await.expect("release");
        }
    });
    future::join_all(ended).await;
    is_clean(&compute, &networks).await;
}

#[tokio::test]
async fn network_exists_for_each_container_under_concurrent_removal() {
    let Some(engine) = engine("network_exists_for_each_container_under_concurrent_removal") else { return };

    let (compute, networks) = engine.cluster();
    let network = network();
    let rounds = (0..4).map(|n| {
        let (compute, networks, network, image) = (&compute, &networks, &network, &engine.image);
        async move {
            for _ in 0..5 {
                let (container_spec, wires) = (container_spec(image, None), attachment(network, 10 + n));
                networks.ensure_network(network).await.expect("a network");
                compute.create(&container_spec, &wires).await.expect("create");
                compute.start(container_spec.instance).await.expect("start");
                compute.remove(container_spec.instance).await.expect("remove");
                networks.release_network(network.id).await.expect("release");
            }
        }
    });
    future::join_all(rounds).await;

    is_clean(&compute, &networks).await;
}

#[tokio::test]
async fn create_reports_a_port_in_use() {
    let Some(engine) = engine("create_reports_a_port_in_use") else { return };
    let (compute, networks) = engine.cluster();
    let network = network();
    let (other, wires) = (container_spec(&engine.image, None), attachment(&network, 10));
    let ports = wires.ports.clone();
    compute.create(&other, &wires).await.expect("create");
    compute.start(other.instance).await.expect("start");
    let (one, wires) = (container_spec(&engine.image, None), NetworkAttachment { ports, ..attachment(&network, 11) });
    compute.create(&one, &wires).await.expect("create");
    let taken = compute.start(one.instance).await;
    assert!(matches!(taken, Err(BackendError::PortConflict(_))), "by a container: {taken:?}");
    compute.remove(other.instance).await.expect("remove");

    let socket = TcpListener::bind((Ipv4Addr::UNSPECIFIED, wires.ports[0].host)).expect("free again");
    let taken = compute.start(one.instance).await;
    assert!(matches!(taken, Err(BackendError::PortConflict(_))), "by a process: {taken:?}");
    drop(socket);
    compute.start(one.instance).await.expect("free again");
    assert!(serves_page(wires.ports[0].host).await);
    compute.remove(one.instance).await.expect("remove");
    networks.release_network(network.id).await.expect("release");
    is_clean(&compute, &networks).await;
}

#[tokio::test]
async fn changed_spec_replaces_container_with_the_planned_address() {
    let Some(engine) = engine("changed_spec_replaces_container_with_the_planned_address") else { return };

    let (compute, networks) = engine.cluster();
    let network = network();
    let wires = attachment(&network, 10);
    // Exits with 0 only if the link has the planned MAC.
    let test = format!(
        "busybox ip -o link show eth0 | busybox grep -q {} && busybox ip -o addr show eth0 | busybox grep -q {}/",
        wires.mac, wires.address
    );
    let mut changes = compute.changes();
    let plain = container_spec(&engine.image, None);
    let first = compute.create(&plain, &wires).await.expect("create");
    let command = ["busybox", "sh", "-c", &test].map(str::to_owned).to_vec();
    let checking = ContainerSpec { command: Some(command), ..plain };

    assert_ne!(compute.create(&checking, &wires).await.expect("create"), first);

    compute.start(checking.instance).await.expect("start");
    loop {
        changes.next().await.expect("goes on").expect("a change");
        let observed = compute.inspect(checking.instance).await.expect("inspect").expect("a container");
        if let ContainerState::Exited { exit_code, .. } = observed.state {
            assert_eq!(exit_code, 0);
            break;
        }
    }
    networks.publish(checking.instance, &wires).await.expect("its end is noticed elsewhere");
    compute.remove(checking.instance).await.expect("remove");
    networks.release_network(network.id).await.expect("release");
    is_clean(&compute, &networks).await;
}

#[tokio::test]
async fn renamed_container_is_found_by_its_labels() {
    let Some(engine) = engine("renamed_container_is_found_by_its_labels") else { return };
    let (compute, networks) = engine.cluster();
    let network = network();
    let (container_spec, wires) = (container_spec(&engine.image, None), attachment(&network, 10));
    let (id, container) = (container_spec.instance, compute.create(&container_spec, &wires).await.expect("create"));
    let name = format!("renamed-{id}");
    engine.docker(&["rename", &container, &name]);

    assert_eq!(compute.create(&container_spec, &wires).await.expect("create again"), container, "adopted, not doubled");
    compute.start(id).await.expect("start");
    networks.publish(id, &wires).await.expect("publish");
    assert!(serves_page(wires.ports[0].host).await);
    let observed = compute.inspect(id).await.expect("inspect").expect("a container");
    assert_eq!((observed.container_id, observed.state), (container.clone(), ContainerState::Running));
    // Another container takes its name and is not mistaken for it.
    let other = engine.docker(&["run", "-d", "--name", &format!("app-{id}"), &engine.image, "sleep", "600"]);
    let observed = compute.inspect(id).await.expect("inspect").expect("a container");
    assert_eq!(observed.container_id, container);
    compute.stop(id, Duration::ZERO).await.expect("stop");
    let observed = compute.inspect(id).await.expect("inspect").expect("a container");
    assert!(matches!(observed.state, ContainerState::Exited { .. }), "{observed:?}");
    compute.remove(id).await.expect("remove");
    assert_eq!(compute.inspect(id).await.expect("inspect"), None);
    assert_eq!(engine.docker(&["inspect", "-f", "{{.State.Running}}", &other]), "true");

    engine.docker(&["rm", "-f", &other]);
    networks.release_network(network.id).await.expect("release");
    is_clean(&compute, &networks).await;
}

#[tokio::test]
async fn container_with_our_name_wins_and_remove_deletes_all_copies() {
    let Some(engine) = engine("container_with_our_name_wins_and_remove_deletes_all_copies") else { return };
    let (compute, networks) = engine.cluster();
    let network = network();
    let (container_spec, wires) = (container_spec(&engine.image, None), attachment(&network, 10));
    let id = container_spec.instance;
    let container = compute.create(&container_spec, &wires).await.expect("create");
    // A copy with all labels, as an earlier release left it beside a renamed container.
    let labels =
        engine.docker(&["inspect", "-f", "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}} {{end}}", &container]);
    let labels: Vec<&str> = labels.split_whitespace().flat_map(|label| ["--label", label]).collect();
    let copy = engine.docker(&[&["create"], &labels[..], &[&engine.image]].concat());

    let observed = compute.inspect(id).await.expect("inspect").expect("a container");
    assert_eq!(observed.container_id, container);
    let listed = compute.list().await.expect("list");
    assert_eq!(listed.iter().map(|one| &one.container_id).collect::<Vec<_>>(), [&container]);
    engine.docker(&["rename", &container, &format!("renamed-{id}")]);
    let observed = compute.inspect(id).await.expect("inspect").expect("a container");
    assert_eq!(observed.container_id, copy, "the newest");
    assert_eq!(compute.list().await.expect("list")[0].container_id, copy);
    compute.discard(&observed).await.expect("discard");
    let left = compute.inspect(id).await.expect("inspect").expect("the other one");
    assert_eq!(left.container_id, container, "discarded one, not all");
    engine.docker(&[&["create"], &labels[..], &[&engine.image]].concat());
    compute.remove(id).await.expect("remove");
    networks.release_network(network.id).await.expect("release");
    is_clean(&compute, &networks).await;
}

#[tokio::test]
async fn anonymous_volumes_go_with_remove_and_outlive_a_replacement() {
    let Some(engine) = engine("anonymous_volumes_go_with_remove_and_outlive_a_replacement") else { return };
    let (compute, networks) = engine.cluster();
    let (network, image) = (network(), format!("it-volume-{}:1", std::process::id()));
    engine.image_with_volume(&image);
    let volume = |container: &str| engine.docker(&["inspect", "-f", "{{(index .Mounts 0).Name}}", container]);
    let exists = |volume: &str| engine.docker(&["volume", "ls", "-q"]).lines().any(|line| line == volume);
    let (container_spec, wires) = (container_spec(&image, None), attachment(&network, 10));

    let first = volume(&compute.create(&container_spec, &wires).await.expect("create"));
    let next = ContainerSpec { generation: 2, ..container_spec };
    let second = volume(&compute.create(&next, &wires).await.expect("replace"));
    assert!(exists(&first) && exists(&second) && first != second);
    compute.remove(next.instance).await.expect("remove");
    assert!(exists(&first) && !exists(&second));

    let discarded = async |run: bool| {
        let volume = volume(&compute.create(&next, &wires).await.expect("create"));
        if run {
            compute.start(next.instance).await.expect("start");
        }
        let observed = compute.inspect(next.instance).await.expect("inspect").expect("a container");
        compute.discard(&observed).await.expect("discard");
        volume
    };
    let (unused, used) = (discarded(false).await, discarded(true).await);
    assert!(!exists(&unused) && exists(&used), "what ran may have written");
    engine.docker(&["volume", "rm", &used]);

    engine.docker(&["volume", "rm", &first]);
    engine.docker(&["rmi", &image]);
    networks.release_network(network.id).await.expect("release");
    is_clean(&compute, &networks).await;
}

#[tokio::test]
async fn stopped_container_joins_a_network_created_anew() {
    let Some(engine) = engine("stopped_container_joins_a_network_created_anew") else { return };
    let (compute, networks) = engine.cluster();
    let network = network();
    let (container_spec, wires) = (container_spec(&engine.image, None), attachment(&network, 10));
    let (id, container) = (container_spec.instance, compute.create(&container_spec, &wires).await.expect("create"));
    compute.start(id).await.expect("start");
    let name = format!("app-{}", network.id);
    // The first command is what `docker network prune` does, which does not count stopped containers. The second leaves
    // what a rejoin leaves that was cut off half way.
    for by_hand in [&["network", "rm", &name][..], &["network", "disconnect", &name, &container]] {
        compute.stop(id, Duration::ZERO).await.expect("stop");
        engine.docker(by_hand);

        networks.ensure_network(&network).await.expect("a network");
        networks.rejoin(id, &wires).await.expect("rejoin");
        compute.start(id).await.expect("start");
        networks.publish(id, &wires).await.expect("publish");

        assert!(serves_page(wires.ports[0].host).await);
        let joined = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.MacAddress}}{{end}}";
        assert_eq!(engine.docker(&["inspect", "-f", joined, &container]), format!("{} {}", wires.address, wires.mac));
    }
    compute.remove(id).await.expect("remove");
    networks.release_network(network.id).await.expect("release");
    is_clean(&compute, &networks).await;
}

#[tokio::test]
async fn network_that_is_not_ours_is_neither_used_nor_removed() {
    let Some(engine) = engine("network_that_is_not_ours_is_neither_used_nor_removed") else { return };
    let (compute, networks) = engine.cluster();
    let network = network();
    let name = format!("app-{}", network.id);
    engine.docker(&["network", "create", "--subnet", &network.cidr.to_string(), &name]);

    let refused = networks.ensure_network(&network).await;
    assert!(
        matches!(&refused, Err(BackendError::NetworkSetup(why)) if why.contains("is not of this cluster")),
        "{refused:?}"
    );
    assert_eq!(networks.release_network(network.id).await.expect("nothing of ours to remove"), Released::Gone);
    assert_eq!(engine.docker(&["network", "ls", "-q", "--filter", &format!("name={name}")]).lines().count(), 1);
    engine.docker(&["network", "rm", &name]);
    is_clean(&compute, &networks).await;
}

#[tokio::test]
async fn exit_by_out_of_memory_is_reported() {
    let Some(engine) = engine("exit_by_out_of_memory_is_reported") else { return };

    let (compute, networks) = engine.cluster();
    let (network, mut changes) = (network(), compute.changes());
    let command = ["busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=200M"].map(str::to_owned).to_vec();
    let hungry = ContainerSpec { command: Some(command), ..container_spec(&engine.image, None) };
    compute.create(&hungry, &attachment(&network, 10)).await.expect("create");
    compute.start(hungry.instance).await.expect("start");
    loop {
        changes.next().await.expect("goes on").expect("a change");
        let observed = compute.inspect(hungry.instance).await.expect("inspect").expect("a container");
        if let ContainerState::Exited { exit_code, oom_killed } = observed.state {
            assert_eq!((exit_code, oom_killed), (137, true));
            break;
        }
    }
    compute.remove(hungry.instance).await.expect("remove");
    networks.release_network(network.id).await.expect("release");

    is_clean(&compute, &networks).await;
}

#[tokio::test]
async fn overlapping_networks_are_refused_with_the_reason() {
    let Some(engine) = engine("overlapping_networks_are_refused_with_the_reason") else { return };

    let (compute, networks) = engine.cluster();
    let first = network();
    let same = NetworkPlan { id: NetworkId::new(), cidr: first.cidr };
    let (one, two) = tokio::join!(networks.ensure_network(&first), networks.ensure_network(&first));
    one.and(two).expect("one network by two at once");
    let refused = networks.ensure_network(&same).await.expect_err("overlap");

    assert!(matches!(&refused, BackendError::NetworkSetup(why) if why.contains("another CIDR")), "{refused}");

    networks.release_network(same.id).await.expect("release");
    networks.release_network(first.id).await.expect("release");
    is_clean(&compute, &networks).await;
}

#[tokio::test]
async fn two_workers_of_one_cluster_share_an_engine() {
    let Some(engine) = engine("two_workers_of_one_cluster_share_an_engine") else { return };

    let cluster = ClusterId::new();
    // Two connections share no lock, like two processes.
    let worker = || DockerCompute::connect(Some(&engine.host), cluster).expect("a host");
    let (one, two) = (worker(), worker());
    let (ones, twos) = (one.network(), two.network());
    let network = network();

    for n in 0..5 {
        let (made, again) = tokio::join!(ones.ensure_network(&network), twos.ensure_network(&network));
        made.and(again).expect("one network by two at once");
        let (container_spec, wires) = (container_spec(&engine.image, None), attachment(&network, 10 + n));
        let (made, again) = tokio::join!(one.create(&container_spec, &wires), two.create(&container_spec, &wires));
        assert_eq!(made.expect("create"), again.expect("create"));
        let (started, again) = tokio::join!(one.start(container_spec.instance), two.start(container_spec.instance));
        started.and(again).expect("start");
        let (removed, again) = tokio::join!(one.remove(container_spec.instance), two.remove(container_spec.instance));
        removed.and(again).expect("remove");
        let (gone, again) = tokio::join!(ones.release_network(network.id), twos.release_network(network.id));
        gone.and(again).expect("release");
        is_clean(&one, &twos).await;
    }
}

#[tokio::test]
async fn create_errors_name_their_cause() {
    let Some(engine) = engine("create_errors_name_their_cause") else { return };

    let (compute, networks) = engine.cluster();
    let compute = compute.allowing(&["127.0.0.1:1".to_owned()]);
    let invalid = compute.ensure_image("BAD:::1", &|_| ()).await;
    assert!(matches!(invalid, Err(BackendError::ImageNotFound(_))), "{invalid:?}");

    // Nothing listens on port 1 of this machine, so there is no registry.
    let unreachable = compute.ensure_image("127.0.0.1:1/nginx:1.27", &|_| ()).await;
    assert!(matches!(unreachable, Err(BackendError::ImagePullFailed(_))), "{unreachable:?}");

    let network = network();
    let tiny = ContainerSpec { memory_mib: 1, ..container_spec(&engine.image, None) };
    let refused = compute.create(&tiny, &attachment(&network, 10)).await;
    assert!(matches!(refused, Err(BackendError::Refused(_))), "{refused:?}");

    networks.release_network(network.id).await.expect("release");
    is_clean(&compute, &networks).await;
}

#[tokio::test]
async fn image_denied_by_the_registry_is_not_found() {
    let Some(engine) = engine("image_denied_by_the_registry_is_not_found") else { return };

    let (compute, _network) = engine.cluster();
    let registry = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = registry.local_addr().expect("an address").port();
    let compute = compute.allowing(&[format!("127.0.0.1:{port}")]);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = registry.accept().await {
            let mut request = [0; 4096];
            let read = socket.read(&mut request).await.unwrap_or(0);
            let answer = if request[..read].starts_with(b"GET /v2/ ") {
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
                    .to_owned()
            } else {
                let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
                format!(
                    "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                )
            };
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });

    let missing = compute.ensure_image(&format!("127.0.0.1:{port}/absent:1"), &|_| ()).await;

    assert!(matches!(missing, Err(BackendError::ImageNotFound(_))), "{missing:?}");
}

#[tokio::test]
async fn engine_that_is_down_is_unavailable() {
    let directory = tempfile::tempdir().expect("a directory");
    let host = format!("unix://{}/none.sock", directory.path().display());
    let compute = DockerCompute::connect(Some(&host), ClusterId::new()).expect("connects later");
    assert!(matches!(compute.version().await, Err(BackendError::Unavailable(_))));
    assert!(matches!(compute.list().await, Err(BackendError::Unavailable(_))));
    assert!(matches!(compute.network().networks().await, Err(BackendError::Unavailable(_))));

    let pulled = compute.ensure_image("nginx", &|_| ()).await;
    assert!(matches!(pulled, Err(BackendError::Unavailable(_))), "{pulled:?}");

    let events: Vec<_> = compute.changes().collect().await;
    assert!(matches!(events[..], [Err(BackendError::Unavailable(_))]), "{events:?}");
    assert!(DockerCompute::connect(Some("ssh://host"), ClusterId::new()).is_err());
}

/// Returns whether the demo's page is served; its server needs a moment to listen.
async fn serves_page(port: u16) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if let Ok(mut socket) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
            let mut page = String::new();
            let sent = socket.write_all(b"GET / HTTP/1.0\r\n\r\n").await;
            if sent.is_ok() && socket.read_to_string(&mut page).await.is_ok() && page.contains("200 OK") {
                return true;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}

async fn is_clean(compute: &DockerCompute, networks: &DockerNetwork) {
    assert_eq!(compute.list().await.expect("list"), [], "containers are left");
    assert_eq!(networks.networks().await.expect("networks"), [], "networks are left");
}
