//! Names and labels of containers and networks, by which this cluster's are recognised.
//!
//! A name alone proves nothing, since another cluster may use it too. What lacks our `app.cluster` label, or has
//! labels that do not parse, is not this cluster's. A container without `app.host`, `app.job` or `app.token` is this
//! cluster's: an older release created it.

use std::collections::HashMap;

use crate::{
    backend::{Attempt, ContainerSpec},
    core::id::{ClusterId, HostId, InstanceId, NetworkId},
};

/// The label that holds the cluster's id.
pub(super) const CLUSTER: &str = "app.cluster";
/// The label that holds the instance's id.
pub(super) const INSTANCE: &str = "app.instance";
/// The label that holds the network's id.
pub(super) const NETWORK: &str = "app.network";
const HOST: &str = "app.host";
const GENERATION: &str = "app.generation";
const JOB: &str = "app.job";
const TOKEN: &str = "app.token";
const SPEC: &str = "app.spec";

/// The labels of a container of this cluster.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ContainerLabels {
    /// The instance that the container belongs to.
    pub(super) instance: InstanceId,
    /// The generation of its spec.
    pub(super) generation: i64,
    /// The attempt that created it.
    pub(super) made_by: Option<Attempt>,
    /// The host of the worker that created it.
    pub(super) host: Option<HostId>,
    /// The hash of its spec and attachment (`spec::hash`).
    pub(super) spec_hash: String,
}

/// Returns the name of an instance's container.
pub(super) fn container_name(instance: InstanceId) -> String {
    format!("app-{instance}")
}

/// Returns the engine's name of a network.
pub(super) fn network_name(network: NetworkId) -> String {
    format!("app-{network}")
}

/// Returns the network with this name; `None`: the name is not ours. Only for a name in a container of this cluster.
pub(super) fn parse_network_name(name: &str) -> Option<NetworkId> {
    name.strip_prefix("app-")?.parse().ok()
}

/// Returns the labels of a new container.
pub(super) fn for_container(
    cluster: ClusterId,
    container_spec: &ContainerSpec,
    spec_hash: String,
) -> HashMap<String, String> {
    HashMap::from([
        (CLUSTER.to_owned(), cluster.to_string()),
        (INSTANCE.to_owned(), container_spec.instance.to_string()),
        (HOST.to_owned(), container_spec.host.to_string()),
        (GENERATION.to_owned(), container_spec.generation.to_string()),
        (JOB.to_owned(), container_spec.made_by.job.to_string()),
        (TOKEN.to_owned(), container_spec.made_by.token.to_string()),
        (SPEC.to_owned(), spec_hash),
    ])
}

/// Returns the labels of a new network.
pub(super) fn for_network(cluster: ClusterId, network: NetworkId) -> HashMap<String, String> {
    HashMap::from([(CLUSTER.to_owned(), cluster.to_string()), (NETWORK.to_owned(), network.to_string())])
}

/// Returns the labels of a container; `None`: it is not this cluster's.
pub(super) fn parse_container_labels(
    cluster: ClusterId,
    labels: Option<&HashMap<String, String>>,
) -> Option<ContainerLabels> {
    let labels = labels.filter(|labels| has_cluster(cluster, labels))?;
    let attempt = || Some(Attempt { job: labels.get(JOB)?.parse().ok()?, token: labels.get(TOKEN)?.parse().ok()? });
    Some(ContainerLabels {
        instance: labels.get(INSTANCE)?.parse().ok()?,
        generation: labels.get(GENERATION)?.parse().ok()?,
        made_by: attempt(),
        host: labels.get(HOST).and_then(|host| host.parse().ok()),
        spec_hash: labels.get(SPEC)?.clone(),
    })
}

/// Returns the network that a label names; `None`: it is not this cluster's.
pub(super) fn parse_network_labels(cluster: ClusterId, labels: Option<&HashMap<String, String>>) -> Option<NetworkId> {
    labels.filter(|labels| has_cluster(cluster, labels))?.get(NETWORK)?.parse().ok()
}

/// Returns the engine's filter for everything of this cluster.
pub(super) fn cluster_filter(cluster: ClusterId) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{CLUSTER}={cluster}")])])
}

/// Returns the engine's filter for the containers of one instance, whatever their names.
pub(super) fn instance_filter(cluster: ClusterId, instance: InstanceId) -> HashMap<String, Vec<String>> {
    let labels = vec![format!("{CLUSTER}={cluster}"), format!("{INSTANCE}={instance}")];
    HashMap::from([("label".to_owned(), labels)])
}

fn has_cluster(cluster: ClusterId, labels: &HashMap<String, String>) -> bool {
    labels.get(CLUSTER).is_some_and(|label| *label == cluster.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::core::id::JobId;

    const NAMES: [&str; 8] = [CLUSTER, INSTANCE, NETWORK, HOST, GENERATION, JOB, TOKEN, SPEC];

    /// Labels that another program may have set: each of ours with a number, an id, any text, or not at all.
    fn foreign_labels() -> impl Strategy<Value = HashMap<String, String>> {
        let id = any::<[u8; 16]>().prop_map(|bytes| uuid::Uuid::from_bytes(bytes).to_string());
        let value = prop_oneof![id, any::<i64>().prop_map(|number| number.to_string()), any::<String>()];
        let values = proptest::collection::vec(proptest::option::of(value), NAMES.len());
        values.prop_map(|values| {
            let named = NAMES.into_iter().zip(values);
            named.filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
        })
    }

    proptest! {
        #[test]
        fn labels_of_others_are_never_this_clusters(labels in foreign_labels(), name in any::<String>()) {
            let cluster = ClusterId::new();

            prop_assert_eq!(parse_container_labels(cluster, Some(&labels)), None);
            prop_assert_eq!(parse_network_labels(cluster, Some(&labels)), None);
            let is_same = |network| network_name(network).eq_ignore_ascii_case(&name);
            prop_assert!(parse_network_name(&name).is_none_or(is_same));
        }

        #[test]
        fn labels_of_this_cluster_are_read_as_they_are_or_not_at_all(mut labels in foreign_labels()) {
            let cluster = ClusterId::new();
            labels.insert(CLUSTER.to_owned(), cluster.to_string());

            if let Some(parsed) = parse_container_labels(cluster, Some(&labels)) {
                prop_assert_eq!(parsed.instance.to_string(), labels[INSTANCE].to_lowercase());
                prop_assert_eq!(Ok(parsed.generation), labels[GENERATION].parse());
                prop_assert_eq!(&parsed.spec_hash, &labels[SPEC]);
            }
            let network = parse_network_labels(cluster, Some(&labels));
            prop_assert_eq!(network, labels.get(NETWORK).and_then(|id| id.parse().ok()));
        }
    }

    #[test]
    fn network_name_is_parsed_back() {
        let network = NetworkId::new();

        assert_eq!(parse_network_name(&network_name(network)), Some(network));
        assert_eq!(parse_network_name("bridge"), None);
    }

    #[test]
    fn labels_are_parsed_by_their_own_cluster_only() {
        let cluster = ClusterId::new();
        let container_spec = ContainerSpec {
            instance: InstanceId::new(),
            generation: 7,
            made_by: Attempt { job: JobId::new(), token: 3 },
            host: HostId::new(),
            image: "app-demo:1".to_owned(),
            command: None,
            env: BTreeMap::new(),
            cpu_millis: 100,
            memory_mib: 64,
        };
        let labels = for_container(cluster, &container_spec, "abc".to_owned());
        let (instance, made_by, host) =
            (container_spec.instance, Some(container_spec.made_by), Some(container_spec.host));
        let parsed = ContainerLabels { instance, generation: 7, made_by, host, spec_hash: "abc".to_owned() };

        assert_eq!(parse_container_labels(cluster, Some(&labels)), Some(parsed));
        assert_eq!(parse_container_labels(ClusterId::new(), Some(&labels)), None);
        assert_eq!(parse_container_labels(cluster, Some(&HashMap::new())), None);
        assert_eq!(parse_container_labels(cluster, None), None);

        let mut older = labels;
        for label in [HOST, JOB, TOKEN] {
            older.remove(label);
        }
        let parsed = parse_container_labels(cluster, Some(&older)).expect("a container of an older release");
        assert_eq!((parsed.instance, parsed.made_by, parsed.host), (instance, None, None));
    }
}
