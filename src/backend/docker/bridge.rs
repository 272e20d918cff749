//! Bridge networks: one per tenant network and host, found by name and label.
//!
//! Promises: `ensure` and `release` can be repeated and, through the network's lock, run at once in one process;
//! between processes the engine itself refuses the second of two networks with one CIDR. A network that any
//! container names, running or not, is kept: a stopped container needs it to start again.
//! Refuses: adopting or removing a network that has our name but not our label.

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
    client::{Engine, LONG, SHORT, within},
    error, labels,
    observe::Placed,
    spec,
};
use crate::{
    backend::{BackendError, NetworkAttachment, NetworkPlan, Released},
    core::id::NetworkId,
};

/// How often a CIDR that is taken by nothing visible is tried again.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(200);
/// Between looks whether a container has joined. Joining takes 20 ms on an idle machine.
const JOINING: Duration = Duration::from_millis(10);
/// Engines before 28.1 lose count of a network's endpoints when several come and go at once, and set it right when they
/// start (moby 51d7f95, "libnet: remove struct endpointCnt").
const MISCOUNTED: &str = "no container is in this network, but Docker says that some are, and keeps it until it is restarted: before \
     28.1 it may lose count";
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";

/// Under the network's exclusive lock.
pub(super) async fn ensure(engine: &Engine, plan: &NetworkPlan) -> Result<(), BackendError> {
    let (mut found, is_taken) = find(engine, plan.id).await?;
    if is_taken {
        // Containers join by name.
        let name = labels::network_name(plan.id);
        return Err(BackendError::NetworkSetup(format!("a network named {name} exists and is not ours").into()));
    }
    // Engines up to 24 allow one name twice; all but the oldest go, so that the name is unambiguous.
    for twin in found.drain(1.min(found.len())..) {
        remove(engine, &twin).await?;
    }
    match found.first() {
        Some(network) if subnet(network) == Some(plan.cidr) => return Ok(()),
        Some(network) if remove(engine, network).await? => {}
        Some(_) => return Err(BackendError::NetworkSetup(format!("{} is in use with another CIDR", plan.id).into())),
        None => {}
    }
    create(engine, plan).await
}

async fn create(engine: &Engine, plan: &NetworkPlan) -> Result<(), BackendError> {
    let docker = engine.docker().await?;
    let mut attempts = ATTEMPTS;
    loop {
        let Err(error) = within(LONG, docker.create_network(request(engine, plan))).await else { return Ok(()) };
        let is_taken = matches!(error::status(&error), Some(403 | 409));
        if is_taken && exists(engine, plan).await? {
            return Ok(());
        }
        // Taken, but by nothing that shows: another process is just making it, or a removal is not yet through.
        if !is_taken || attempts == 0 || is_overlapped(engine, plan).await? {
            return Err(error::networking(plan.cidr, error));
        }
        attempts -= 1;
        time::sleep(PAUSE).await;
    }
}

async fn is_overlapped(engine: &Engine, plan: &NetworkPlan) -> Result<bool, BackendError> {
    let (first, last) = (plan.cidr.first_address(), plan.cidr.last_address());
    let all = list(engine, HashMap::new()).await?;
    Ok(all.iter().filter_map(subnet).any(|other| other.first_address() <= last && first <= other.last_address()))
}

pub(super) async fn exists(engine: &Engine, plan: &NetworkPlan) -> Result<bool, BackendError> {
    let (found, is_taken) = find(engine, plan.id).await?;
    Ok(!is_taken && found.first().is_some_and(|network| subnet(network) == Some(plan.cidr)))
}

/// Makes a container that does not run join the network as it is now. The engine would look for the one it was in by that
/// one's id, and finds none if another has taken the name since. `endpoint`: how the container is in that name by now.
pub(super) async fn rejoin(
    engine: &Engine,
    container: &str,
    endpoint: Option<EndpointSettings>,
    attachment: &NetworkAttachment,
) -> Result<(), BackendError> {
    let (found, _) = find(engine, attachment.network.id).await?;
    let Some(network) = found.first().and_then(|network| network.id.as_deref()) else { return Ok(()) };
    let docker = engine.docker().await?;
    if let Some(endpoint) = endpoint {
        let joined = endpoint.network_id.unwrap_or_default();
        // Empty: it has never been started, and will go by the name.
        if joined.is_empty() || joined == network {
            return Ok(());
        }
        let leave = NetworkDisconnectRequest { container: container.to_owned(), force: Some(true) };
        within(LONG, docker.disconnect_network(network, leave)).await.map_err(error::joining)?;
    }
    let join = NetworkConnectRequest {
        container: container.to_owned(),
        endpoint_config: Some(spec::endpoint_settings(attachment)),
    };
    within(LONG, docker.connect_network(network, join)).await.map_err(error::joining)
}

/// Under the network's exclusive lock.
pub(super) async fn release(engine: &Engine, network: NetworkId) -> Result<Released, BackendError> {
    let (found, _) = find(engine, network).await?;
    if found.is_empty() {
        return Ok(Released::Gone);
    }
    if is_named_by_a_container(engine, network).await? {
        return Ok(Released::Used);
    }
    let mut is_gone = true;
    for network in &found {
        is_gone &= remove(engine, network).await?;
    }
    if is_gone {
        return Ok(Released::Gone);
    }
    // Another process may have put a container there meanwhile.
    if is_named_by_a_container(engine, network).await? {
        return Ok(Released::Used);
    }
    tracing::warn!(%network, "{MISCOUNTED}");
    Ok(Released::Stuck(MISCOUNTED.to_owned()))
}

/// Returns when the engine has counted the container in; never, if it is in no network of ours or if it cannot be seen.
pub(super) async fn joined(engine: &Engine, placed: &Placed) {
    let Some(network) = placed.network else { return future::pending().await };
    while !is_in(engine, network, &placed.container).await.unwrap_or_default() {
        time::sleep(JOINING).await;
    }
}

async fn is_in(engine: &Engine, network: NetworkId, container: &str) -> Result<bool, BackendError> {
    let name = labels::network_name(network);
    let call = engine.docker().await?.inspect_network(&name, None::<InspectNetworkOptions>);
    let found = within(SHORT, call).await.map_err(error::general)?;
    Ok(found.containers.is_some_and(|containers| containers.contains_key(container)))
}

pub(super) async fn all(engine: &Engine) -> Result<Vec<NetworkId>, BackendError> {
    let found = list(engine, labels::ours(engine.cluster)).await?;
    let mut ids: Vec<_> =
        found.iter().filter_map(|network| labels::network_mark(engine.cluster, network.labels.as_ref())).collect();
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// Ours of that name, the oldest first, and whether one that is not ours has the name.
async fn find(engine: &Engine, network: NetworkId) -> Result<(Vec<Network>, bool), BackendError> {
    let name = labels::network_name(network);
    let mut found = list(engine, HashMap::from([("name".to_owned(), vec![name.clone()])])).await?;
    // The engine's filter also finds longer names.
    found.retain(|candidate| candidate.name.as_deref() == Some(&name));
    let named = found.len();
    found.retain(|found| labels::network_mark(engine.cluster, found.labels.as_ref()) == Some(network));
    found.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
    let is_taken = found.len() < named;
    Ok((found, is_taken))
}

async fn list(engine: &Engine, filters: HashMap<String, Vec<String>>) -> Result<Vec<Network>, BackendError> {
    let options = ListNetworksOptions { filters: Some(filters) };
    within(SHORT, engine.docker().await?.list_networks(Some(options))).await.map_err(error::general)
}

async fn is_named_by_a_container(engine: &Engine, network: NetworkId) -> Result<bool, BackendError> {
    let filters = HashMap::from([("network".to_owned(), vec![labels::network_name(network)])]);
    let options = ListContainersOptions { all: true, limit: Some(1), filters: Some(filters), ..Default::default() };
    let found = within(SHORT, engine.docker().await?.list_containers(Some(options))).await.map_err(error::general)?;
    Ok(!found.is_empty())
}

/// Whether it is gone; a network with endpoints stays.
async fn remove(engine: &Engine, network: &Network) -> Result<bool, BackendError> {
    let id = network.id.as_deref().ok_or_else(|| BackendError::Unavailable("a network without an id".into()))?;
    match within(LONG, engine.docker().await?.remove_network(id)).await {
        Ok(()) => Ok(true),
        Err(error) => match error::answer(&error) {
            Some((404, _)) => Ok(true),
            Some((_, message)) if message.contains("active endpoints") => Ok(false),
            _ => Err(error::general(error)),
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

/// At most 15 characters, as Linux demands. The end of the id is taken: ids begin with the time and share it.
fn bridge_name(network: NetworkId) -> String {
    let id = network.uuid().simple().to_string();
    format!("br-{}", &id[id.len() - 11..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridge_names_fit_and_differ() {
        let id: NetworkId = "01890a5d-ac96-774b-bcce-b302099a8057".parse().expect("an id");
        assert_eq!(bridge_name(id), "br-302099a8057");
        let names: std::collections::HashSet<_> = (0..1000).map(|_| bridge_name(NetworkId::new())).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.len() <= 15));
    }
}
