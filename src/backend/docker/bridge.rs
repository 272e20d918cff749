//! Bridge networks: one per tenant network and host, recognised by name and label.
//!
//! `ensure` and `release` can be repeated. The network's lock makes them exclude each other within this process;
//! between processes the engine itself refuses the second of two networks with one CIDR. A network that any container
//! refers to, running or not, is kept, because a stopped container needs it to start again. A network that has our name
//! but not our label is neither adopted nor removed.

use std::{collections::HashMap, future, time::Duration};

use bollard::{
    models::{
        EndpointSettings, Ipam, IpamConfig, Network, NetworkConnectRequest, NetworkCreateRequest,
        NetworkDisconnectRequest,
    },
    query_parameters::{InspectNetworkOptions, ListContainersOptions, ListNetworksOptions},
};
use cidr::Ipv4Cidr;
use tokio::time;

use super::{
    client::{Engine, LONG_CALL_TIMEOUT, SHORT_CALL_TIMEOUT, within},
    error,
    inspect::ContainerRef,
    labels, spec,
};
use crate::{
    backend::{BackendError, NetworkAttachment, NetworkPlan, Released},
    core::id::NetworkId,
};

/// How many times a creation is tried again while its CIDR is taken although no listed network has it.
const CREATE_RETRIES_MAX: u32 = 20;
const CREATE_RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// How often a start checks whether its container has joined the network. Joining takes 20 ms on an idle machine.
const JOIN_POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Engines before 28.1 count a network's endpoints wrongly when several join and leave at the same time, and correct
/// the count only when they restart (moby 51d7f95, "libnet: remove struct endpointCnt").
const MISCOUNTED_ENDPOINTS: &str = "no container is in this network, but Docker says that some are, and keeps the \
     network until Docker is restarted: before 28.1 its count can be wrong";
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";

/// Creates the network, if it does not exist. The caller holds the network's lock exclusively.
///
/// # Errors
/// `NetworkSetup` when the name or the CIDR is taken.
pub(super) async fn ensure(engine: &Engine, plan: &NetworkPlan) -> Result<(), BackendError> {
    let (mut networks, is_taken) = find(engine, plan.id).await?;
    if is_taken {
        // Containers join a network by its name, so they would join that one.
        let name = labels::network_name(plan.id);
        return Err(BackendError::NetworkSetup(
            format!("a network named {name} exists and is not of this cluster").into(),
        ));
    }
    // Engines up to 24 allow two networks of one name. All but the oldest are removed, so that the name is unambiguous.
    for duplicate in networks.drain(1.min(networks.len())..) {
        remove(engine, &duplicate).await?;
    }
    match networks.first() {
        Some(network) if subnet(network) == Some(plan.cidr) => return Ok(()),
        Some(network) if remove(engine, network).await? => {}
        Some(_) => return Err(BackendError::NetworkSetup(format!("{} is in use with another CIDR", plan.id).into())),
        None => {}
    }
    create(engine, plan).await
}

async fn create(engine: &Engine, plan: &NetworkPlan) -> Result<(), BackendError> {
    let docker = engine.docker().await?;
    let mut retries = CREATE_RETRIES_MAX;
    loop {
        let Err(error) = within(LONG_CALL_TIMEOUT, docker.create_network(request(engine, plan))).await else {
            return Ok(());
        };
        let is_taken = matches!(error::status(&error), Some(403 | 409));
        if is_taken && exists(engine, plan).await? {
            return Ok(());
        }
        // The CIDR is taken, but by no network that is listed: another process is creating the network at this moment,
        // or a removal is not complete.
        if !is_taken || retries == 0 || is_overlapped(engine, plan).await? {
            return Err(error::of_network(plan.cidr, error));
        }
        retries -= 1;
        time::sleep(CREATE_RETRY_INTERVAL).await;
    }
}

async fn is_overlapped(engine: &Engine, plan: &NetworkPlan) -> Result<bool, BackendError> {
    let (first, last) = (plan.cidr.first_address(), plan.cidr.last_address());
    let all = list_matching(engine, HashMap::new()).await?;
    Ok(all.iter().filter_map(subnet).any(|other| other.first_address() <= last && first <= other.last_address()))
}

/// Returns whether the network exists with the planned CIDR.
pub(super) async fn exists(engine: &Engine, plan: &NetworkPlan) -> Result<bool, BackendError> {
    let (networks, is_taken) = find(engine, plan.id).await?;
    Ok(!is_taken && networks.first().is_some_and(|network| subnet(network) == Some(plan.cidr)))
}

/// Attaches a stopped container to the network that exists now. At a start the engine looks for the network by the id
/// that it had when the container joined, and does not find it if it was created again since. `endpoint`: the
/// container's present endpoint in the network of this name.
pub(super) async fn rejoin(
    engine: &Engine,
    container: &str,
    endpoint: Option<EndpointSettings>,
    attachment: &NetworkAttachment,
) -> Result<(), BackendError> {
    let (networks, _) = find(engine, attachment.network.id).await?;
    let Some(network) = networks.first().and_then(|network| network.id.as_deref()) else { return Ok(()) };
    let docker = engine.docker().await?;
    if let Some(endpoint) = endpoint {
        let joined = endpoint.network_id.unwrap_or_default();
        // It is empty when the container has never been started: the engine looks for the network by name then.
        if joined.is_empty() || joined == network {
            return Ok(());
        }
        let leave = NetworkDisconnectRequest { container: container.to_owned(), force: Some(true) };
        within(LONG_CALL_TIMEOUT, docker.disconnect_network(network, leave)).await.map_err(error::of_join)?;
    }
    let join = NetworkConnectRequest {
        container: container.to_owned(),
        endpoint_config: Some(spec::endpoint_settings(attachment)),
    };
    within(LONG_CALL_TIMEOUT, docker.connect_network(network, join)).await.map_err(error::of_join)
}

/// Removes the network unless a container refers to it. The caller holds the network's lock exclusively.
pub(super) async fn release(engine: &Engine, network: NetworkId) -> Result<Released, BackendError> {
    let (networks, _) = find(engine, network).await?;
    if networks.is_empty() {
        return Ok(Released::Gone);
    }
    if is_used_by_a_container(engine, network).await? {
        return Ok(Released::InUse);
    }
    let mut is_gone = true;
    for network in &networks {
        is_gone &= remove(engine, network).await?;
    }
    if is_gone {
        return Ok(Released::Gone);
    }
    // Another process may have created a container in it meanwhile.
    if is_used_by_a_container(engine, network).await? {
        return Ok(Released::InUse);
    }
    tracing::warn!(%network, "{MISCOUNTED_ENDPOINTS}");
    Ok(Released::Stuck(MISCOUNTED_ENDPOINTS.to_owned()))
}

/// Waits until the engine lists the container as an endpoint of its network. Never returns where the container has no
/// network of this cluster, or where the engine does not list it.
pub(super) async fn wait_until_joined(engine: &Engine, container: &ContainerRef) {
    let Some(network) = container.network else { return future::pending().await };
    while !has_endpoint(engine, network, &container.id).await.unwrap_or_default() {
        time::sleep(JOIN_POLL_INTERVAL).await;
    }
}

async fn has_endpoint(engine: &Engine, network: NetworkId, container: &str) -> Result<bool, BackendError> {
    let name = labels::network_name(network);
    let call = engine.docker().await?.inspect_network(&name, None::<InspectNetworkOptions>);
    let network = within(SHORT_CALL_TIMEOUT, call).await.map_err(error::from_response)?;
    Ok(network.containers.is_some_and(|containers| containers.contains_key(container)))
}

/// Returns the networks of this cluster.
pub(super) async fn list(engine: &Engine) -> Result<Vec<NetworkId>, BackendError> {
    let networks = list_matching(engine, labels::cluster_filter(engine.cluster)).await?;
    let mut ids: Vec<_> = networks
        .iter()
        .filter_map(|network| labels::parse_network_labels(engine.cluster, network.labels.as_ref()))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// Returns this cluster's networks of that name, the oldest first, and whether another network has the name.
async fn find(engine: &Engine, network: NetworkId) -> Result<(Vec<Network>, bool), BackendError> {
    let name = labels::network_name(network);
    let mut networks = list_matching(engine, HashMap::from([("name".to_owned(), vec![name.clone()])])).await?;
    // The engine's filter also matches longer names.
    networks.retain(|candidate| candidate.name.as_deref() == Some(&name));
    let with_name = networks.len();
    networks
        .retain(|candidate| labels::parse_network_labels(engine.cluster, candidate.labels.as_ref()) == Some(network));
    networks.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
    let is_taken = networks.len() < with_name;
    Ok((networks, is_taken))
}

async fn list_matching(engine: &Engine, filters: HashMap<String, Vec<String>>) -> Result<Vec<Network>, BackendError> {
    let options = ListNetworksOptions { filters: Some(filters) };
    within(SHORT_CALL_TIMEOUT, engine.docker().await?.list_networks(Some(options))).await.map_err(error::from_response)
}

async fn is_used_by_a_container(engine: &Engine, network: NetworkId) -> Result<bool, BackendError> {
    let filters = HashMap::from([("network".to_owned(), vec![labels::network_name(network)])]);
    let options = ListContainersOptions { all: true, limit: Some(1), filters: Some(filters), ..Default::default() };
    let containers = within(SHORT_CALL_TIMEOUT, engine.docker().await?.list_containers(Some(options)))
        .await
        .map_err(error::from_response)?;
    Ok(!containers.is_empty())
}

/// Removes the network. Returns `false` when the engine says that it has endpoints.
async fn remove(engine: &Engine, network: &Network) -> Result<bool, BackendError> {
    let id = network.id.as_deref().ok_or_else(|| BackendError::Unavailable("a network without an id".into()))?;
    match within(LONG_CALL_TIMEOUT, engine.docker().await?.remove_network(id)).await {
        Ok(()) => Ok(true),
        Err(error) => match error::response(&error) {
            Some((404, _)) => Ok(true),
            Some((_, message)) if message.contains("active endpoints") => Ok(false),
            _ => Err(error::from_response(error)),
        },
    }
}

fn request(engine: &Engine, plan: &NetworkPlan) -> NetworkCreateRequest {
    NetworkCreateRequest {
        name: labels::network_name(plan.id),
        driver: Some("bridge".to_owned()),
        ipam: Some(Ipam {
            config: Some(vec![IpamConfig {
                subnet: Some(plan.cidr.to_string()),
                gateway: Some(plan.gateway().to_string()),
                ..Default::default()
            }]),
            ..Default::default()
        }),
        options: Some(HashMap::from([(BRIDGE_NAME.to_owned(), bridge_name(plan.id))])),
        labels: Some(labels::for_network(engine.cluster, plan.id)),
        ..Default::default()
    }
}

fn subnet(network: &Network) -> Option<Ipv4Cidr> {
    network.ipam.as_ref()?.config.as_ref()?.first()?.subnet.as_ref()?.parse().ok()
}

/// Returns the name of the bridge's network interface, which Linux limits to 15 characters. It is made of the end of
/// the id, since ids begin with the time and those of one moment would be alike.
fn bridge_name(network: NetworkId) -> String {
    let id = network.uuid().simple().to_string();
    format!("br-{}", &id[id.len() - 11..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridge_names_are_short_and_differ() {
        let id: NetworkId = "01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("an id");
        assert_eq!(bridge_name(id), "br-302099a8057");
        let names: std::collections::HashSet<_> = (0..1000).map(|_| bridge_name(NetworkId::new())).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.len() <= 15));
    }
}
