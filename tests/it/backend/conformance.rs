//! The conformance suite: the behaviour that the worker needs of every backend.
//!
//! A run that passes leaves nothing behind, which its last assertion checks. What needs a real network is in the
//! backend's own tests.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, TcpListener},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use app::{
    backend::{
        Attempt, BackendError, Compute, Container, ContainerChange, ContainerSpec, ContainerState, Network,
        NetworkAttachment, NetworkPlan, PortPlan, Released, TransportProtocol,
    },
    core::id::{HostId, InstanceId, JobId, NetworkId},
};
use futures_util::{StreamExt, stream::BoxStream};

const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);
const AT_ONCE: Duration = Duration::ZERO;

/// Runs all scenarios. `stranger` is the same runtime used by another cluster; `image` runs until it is stopped and has
/// a program `false`.
pub async fn conformance<C: Compute, F: Network>(compute: &C, networks: &F, stranger: &C, image: &str) {
    let network = network();
    networks.ensure_network(&network).await.expect("a network");
    networks.ensure_network(&network).await.expect("the same network again");
    assert_eq!(networks.networks().await.expect("networks"), [network.id]);
    compute.ensure_image(image, &|_| ()).await.expect("the image");

    runs_once(compute, networks, &network, image).await;
    new_generation_replaces_the_container(compute, &network, image).await;
    exit_is_noticed(compute, &network, image).await;
    bad_command_is_reported(compute, &network, image).await;
    other_clusters_container_is_left_alone(compute, stranger, &network, image).await;
    network_in_use_stays(compute, networks, &network, image).await;
    missing_network_is_created_for_a_container(compute, networks, image).await;

    assert_eq!(networks.release_network(network.id).await.expect("release"), Released::Gone);
    assert_eq!(networks.release_network(network.id).await.expect("release again"), Released::Gone);
    assert_eq!(compute.list().await.expect("list"), [], "containers are left");
    assert_eq!(networks.networks().await.expect("networks"), [], "networks are left");
}

async fn runs_once<C: Compute, F: Network>(compute: &C, networks: &F, network: &NetworkPlan, image: &str) {
    let (container_spec, wires) = (container_spec(image, None), attachment(network, 10));
    let id = container_spec.instance;
    assert_eq!(compute.inspect(id).await.expect("inspect"), None);
    compute.stop(id, AT_ONCE).await.expect("stopping what is absent");
    compute.remove(id).await.expect("removing what is absent");

    let (first, second) =
        tokio::join!(compute.create(&container_spec, &wires), compute.create(&container_spec, &wires));
    let container = first.expect("create");
    assert_eq!(second.expect("create at once"), container);
    // Another attempt, by a worker of another host name, has other labels: the container stays what it is.
    let made_by = Attempt { token: container_spec.made_by.token + 1, ..container_spec.made_by };
    let retry = ContainerSpec { made_by, host: HostId::new(), ..container_spec.clone() };
    assert_eq!(compute.create(&retry, &wires).await.expect("create again"), container);

    let observed = compute.inspect(id).await.expect("inspect").expect("a container");
    assert_eq!((observed.instance, observed.generation, &observed.container_id), (id, 1, &container));
    assert_eq!(
        (observed.made_by, observed.host),
        (Some(container_spec.made_by), Some(container_spec.host)),
        "those that created it"
    );
    assert!(observed.belongs_to(container_spec.host) && !observed.belongs_to(retry.host));
    assert_eq!(observed.state, ContainerState::Created);
    assert!((time::OffsetDateTime::now_utc() - observed.created_at).abs() < time::Duration::minutes(1));

    compute.start(id).await.expect("start");
    compute.start(id).await.expect("start again");
    networks.publish(id, &wires).await.expect("publish");
    let listed = compute.list().await.expect("list");
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].instance, listed[0].state), (id, ContainerState::Running));
    assert_eq!(listed[0].container_id, container);
    assert_eq!((listed[0].made_by, listed[0].host), (observed.made_by, observed.host));

    compute.stop(id, AT_ONCE).await.expect("stop");
    compute.stop(id, AT_ONCE).await.expect("stop again");
    assert!(matches!(state(compute, id).await, Some(ContainerState::Exited { .. })));
    assert!(matches!(compute.list().await.expect("list")[0].state, ContainerState::Exited { .. }));
    networks.rejoin(id, &wires).await.expect("rejoin");
    compute.start(id).await.expect("start after stop");
    networks.rejoin(id, &wires).await.expect("rejoin while it runs");
    let observed = compute.inspect(id).await.expect("inspect").expect("a container");
    assert_eq!((observed.state, observed.container_id), (ContainerState::Running, container), "the same one");

    networks.unpublish(id).await.expect("unpublish");
    let (first, second) = tokio::join!(compute.remove(id), compute.remove(id));
    first.expect("remove");
    second.expect("remove at once");
    compute.remove(id).await.expect("remove again");
    networks.rejoin(id, &wires).await.expect("rejoining what is absent");
    assert_eq!(state(compute, id).await, None);
}

async fn new_generation_replaces_the_container<C: Compute>(compute: &C, network: &NetworkPlan, image: &str) {
    let (container_spec, wires) = (container_spec(image, None), attachment(network, 11));
    let old = compute.create(&container_spec, &wires).await.expect("create");
    compute.start(container_spec.instance).await.expect("start");
    let made_by = Attempt { job: JobId::new(), token: 1 };
    let next = ContainerSpec { generation: 2, made_by, ..container_spec };
    let new = compute.create(&next, &wires).await.expect("create the next generation");
    assert_ne!(old, new);
    let observed = compute.inspect(next.instance).await.expect("inspect").expect("a container");
    assert_eq!((observed.generation, observed.state, &observed.container_id), (2, ContainerState::Created, &new));
    assert_eq!(observed.made_by, Some(next.made_by));
    assert_eq!(compute.list().await.expect("list").len(), 1);
    compute.discard(&Container { container_id: old, ..observed.clone() }).await.expect("discard what was replaced");
    assert_eq!(state(compute, next.instance).await, Some(ContainerState::Created), "another container");
    compute.discard(&observed).await.expect("discard");
    assert_eq!(state(compute, next.instance).await, None);
}

async fn exit_is_noticed<C: Compute>(compute: &C, network: &NetworkPlan, image: &str) {
    let (container_spec, wires) = (container_spec(image, Some("false")), attachment(network, 12));
    let mut changes = compute.changes();
    compute.create(&container_spec, &wires).await.expect("create");
    compute.start(container_spec.instance).await.expect("start");
    let ended = ContainerState::Exited { exit_code: 1, oom_killed: false };
    wait_for_state(compute, &mut changes, container_spec.instance, Some(ended)).await;
    compute.remove(container_spec.instance).await.expect("remove");
    wait_for_state(compute, &mut changes, container_spec.instance, None).await;
}

async fn bad_command_is_reported<C: Compute>(compute: &C, network: &NetworkPlan, image: &str) {
    let (container_spec, wires) = (container_spec(image, Some("/no/such/program")), attachment(network, 13));
    compute.create(&container_spec, &wires).await.expect("create");
    let refused = compute.start(container_spec.instance).await;
    assert!(matches!(refused, Err(BackendError::StartFailed(_))), "{refused:?}");
    assert_eq!(state(compute, container_spec.instance).await, Some(ContainerState::Created));
    compute.remove(container_spec.instance).await.expect("undo");
    let gone = compute.start(container_spec.instance).await;
    assert!(matches!(gone, Err(BackendError::Unavailable(_))), "{gone:?}");
}

async fn other_clusters_container_is_left_alone<C: Compute>(
    compute: &C,
    stranger: &C,
    network: &NetworkPlan,
    image: &str,
) {
    let (container_spec, wires) = (container_spec(image, None), attachment(network, 14));
    let id = container_spec.instance;
    compute.create(&container_spec, &wires).await.expect("create");
    compute.start(id).await.expect("start");
    assert_eq!(stranger.inspect(id).await.expect("inspect"), None);
    assert_eq!(stranger.list().await.expect("list"), []);
    stranger.stop(id, AT_ONCE).await.expect("stop");
    stranger.remove(id).await.expect("remove");
    assert_eq!(state(compute, id).await, Some(ContainerState::Running));
    compute.remove(id).await.expect("remove");
}

/// For backends whose clusters share names; the caller passes a network of the stranger's own.
pub async fn taken_name_is_reported<C: Compute, F: Network>(compute: &C, stranger: &C, theirs: &F, image: &str) {
    let container_spec = container_spec(image, None);
    let (ours, other) = (network(), network());
    compute.create(&container_spec, &attachment(&ours, 10)).await.expect("create");
    let taken = stranger.create(&container_spec, &attachment(&other, 10)).await;
    assert!(matches!(taken, Err(BackendError::NameConflict(_))), "{taken:?}");
    assert_eq!(state(compute, container_spec.instance).await, Some(ContainerState::Created));
    compute.remove(container_spec.instance).await.expect("remove");
    theirs.release_network(other.id).await.expect("release");
}

async fn network_in_use_stays<C: Compute, F: Network>(compute: &C, networks: &F, network: &NetworkPlan, image: &str) {
    let (container_spec, wires) = (container_spec(image, None), attachment(network, 15));
    compute.create(&container_spec, &wires).await.expect("create");
    assert_eq!(networks.release_network(network.id).await.expect("a created container names it"), Released::InUse);
    assert_eq!(networks.networks().await.expect("networks"), [network.id]);
    compute.start(container_spec.instance).await.expect("start");
    assert_eq!(networks.release_network(network.id).await.expect("in use"), Released::InUse);
    assert_eq!(networks.networks().await.expect("networks"), [network.id]);
    compute.stop(container_spec.instance, AT_ONCE).await.expect("stop");
    assert_eq!(networks.release_network(network.id).await.expect("it needs it to start again"), Released::InUse);
    assert_eq!(networks.networks().await.expect("networks"), [network.id]);
    compute.remove(container_spec.instance).await.expect("remove");
}

async fn missing_network_is_created_for_a_container<C: Compute, F: Network>(compute: &C, networks: &F, image: &str) {
    let network = network();
    let (container_spec, wires) = (container_spec(image, None), attachment(&network, 16));
    networks.ensure_network(&network).await.expect("a network");
    // Another instance's undo can do this between this instance's two steps.
    networks.release_network(network.id).await.expect("release");
    compute.create(&container_spec, &wires).await.expect("create");
    compute.start(container_spec.instance).await.expect("start");
    compute.remove(container_spec.instance).await.expect("remove");
    networks.release_network(network.id).await.expect("release");
}

/// Waits until the container is as expected, inspecting it only when a change is announced.
async fn wait_for_state<C: Compute>(
    compute: &C,
    changes: &mut BoxStream<'static, Result<ContainerChange, BackendError>>,
    instance: InstanceId,
    expected: Option<ContainerState>,
) {
    let deadline = Instant::now() + CHANGE_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let change = tokio::time::timeout(left, changes.next()).await.expect("a change in time");
        let change = change.expect("the stream goes on").expect("a change");
        if change.instance == instance && state(compute, instance).await == expected {
            return;
        }
    }
}

async fn state<C: Compute>(compute: &C, instance: InstanceId) -> Option<ContainerState> {
    compute.inspect(instance).await.expect("inspect").map(|observed| observed.state)
}

pub fn container_spec(image: &str, command: Option<&str>) -> ContainerSpec {
    ContainerSpec {
        instance: InstanceId::new(),
        generation: 1,
        made_by: Attempt { job: JobId::new(), token: 1 },
        host: HostId::new(),
        image: image.to_owned(),
        command: command.map(|program| vec![program.to_owned()]),
        env: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
        cpu_millis: 100,
        memory_mib: 32,
    }
}

/// Returns a network with a CIDR that other tests on the same host are unlikely to have.
pub fn network() -> NetworkPlan {
    let id = NetworkId::new();
    let random = id.uuid().as_bytes()[13..].to_vec();
    let first = Ipv4Addr::new(10, 128 + random[0] % 128, random[1], random[2] & 0xc0);
    NetworkPlan { id, cidr: format!("{first}/26").parse().expect("a CIDR") }
}

/// Returns a port of the machine on which nothing listens and that no other test gets.
///
/// It is not chosen by the kernel: such ports are also the local ports of outgoing connections, of which other tests
/// open thousands before a container has its port.
fn free_port() -> u16 {
    const FIRST: u16 = 26_000;
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    std::iter::repeat_with(|| FIRST + GIVEN.fetch_add(1, Ordering::Relaxed))
        .take_while(|port| *port < 30_000)
        .find(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok())
        .expect("a free port")
}

/// Returns the address `host` in the network, and port 80 published on a free port of the machine.
pub fn attachment(network: &NetworkPlan, host: u8) -> NetworkAttachment {
    NetworkAttachment {
        network: network.clone(),
        address: Ipv4Addr::from(u32::from(network.cidr.first_address()) + u32::from(host)),
        mac: format!("02:00:00:00:00:{host:02x}"),
        ports: vec![PortPlan { container: 80, host: free_port(), protocol: TransportProtocol::Tcp }],
    }
}
