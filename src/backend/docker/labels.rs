//! Names and labels: how the engine's things are recognised as ours.
//!
//! Promises: a thing without our `app.cluster`, or whose labels do not parse, is not ours. A container of a release that did
//! not write `app.host`, `app.job` or `app.token` yet is ours all the same.
//! Refuses: recognising anything by name alone; another installation may use the same name.

use std::collections::HashMap;

use crate::{
    backend::{Attempt, ContainerSpec},
    core::id::{ClusterId, HostId, InstanceId, NetworkId},
};

pub(super) const CLUSTER: &str = "app.cluster";
pub(super) const INSTANCE: &str = "app.instance";
pub(super) const NETWORK: &str = "app.network";
const HOST: &str = "app.host";
const GENERATION: &str = "app.generation";
const JOB: &str = "app.job";
const TOKEN: &str = "app.token";
const SPEC: &str = "app.spec";

/// What the labels of one of our containers say.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) instance: InstanceId,
    pub(super) generation: i64,
    pub(super) made_by: Option<Attempt>,
    pub(super) host: Option<HostId>,
    /// The hash of everything that shapes the container.
    pub(super) spec: String,
}

pub(super) fn container_name(instance: InstanceId) -> String {
    format!("app-{instance}")
}

pub(super) fn network_name(network: NetworkId) -> String {
    format!("app-{network}")
}

/// Which network a name means, in a container that its labels show to be ours; `None`: none of ours.
pub(super) fn network_of(name: &str) -> Option<NetworkId> {
    name.strip_prefix("app-")?.parse().ok()
}

pub(super) fn for_container(
    cluster: ClusterId,
    container_spec: &ContainerSpec,
    spec: String,
) -> HashMap<String, String> {
    HashMap::from([
        (CLUSTER.to_owned(), cluster.to_string()),
        (INSTANCE.to_owned(), container_spec.instance.to_string()),
        (HOST.to_owned(), container_spec.host.to_string()),
        (GENERATION.to_owned(), container_spec.generation.to_string()),
        (JOB.to_owned(), container_spec.made_by.job.to_string()),
        (TOKEN.to_owned(), container_spec.made_by.token.to_string()),
        (SPEC.to_owned(), spec),
    ])
}

pub(super) fn for_network(cluster: ClusterId, network: NetworkId) -> HashMap<String, String> {
    HashMap::from([(CLUSTER.to_owned(), cluster.to_string()), (NETWORK.to_owned(), network.to_string())])
}

/// `None`: not ours.
pub(super) fn container_mark(cluster: ClusterId, labels: Option<&HashMap<String, String>>) -> Option<Mark> {
    let labels = labels.filter(|labels| is_of(cluster, labels))?;
    let attempt = || Some(Attempt { job: labels.get(JOB)?.parse().ok()?, token: labels.get(TOKEN)?.parse().ok()? });
    Some(Mark {
        instance: labels.get(INSTANCE)?.parse().ok()?,
        generation: labels.get(GENERATION)?.parse().ok()?,
        made_by: attempt(),
        host: labels.get(HOST).and_then(|host| host.parse().ok()),
        spec: labels.get(SPEC)?.clone(),
    })
}

/// `None`: not ours.
pub(super) fn network_mark(cluster: ClusterId, labels: Option<&HashMap<String, String>>) -> Option<NetworkId> {
    labels.filter(|labels| is_of(cluster, labels))?.get(NETWORK)?.parse().ok()
}

/// The engine's filter for what is ours.
pub(super) fn ours(cluster: ClusterId) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{CLUSTER}={cluster}")])])
}

/// The engine's filter for the containers of one instance, whatever their names.
pub(super) fn ours_of(cluster: ClusterId, instance: InstanceId) -> HashMap<String, Vec<String>> {
    let labels = vec![format!("{CLUSTER}={cluster}"), format!("{INSTANCE}={instance}")];
    HashMap::from([("label".to_owned(), labels)])
}

fn is_of(cluster: ClusterId, labels: &HashMap<String, String>) -> bool {
    labels.get(CLUSTER).is_some_and(|label| *label == cluster.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::core::id::JobId;

    #[test]
    fn a_networks_name_is_read_back() {
        let network = NetworkId::new();
        assert_eq!(network_of(&network_name(network)), Some(network));
        assert_eq!(network_of("bridge"), None);
    }

    #[test]
    fn labels_are_read_back_by_their_own_cluster_only() {
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
        let mark = Mark { instance, generation: 7, made_by, host, spec: "abc".to_owned() };
        assert_eq!(container_mark(cluster, Some(&labels)), Some(mark));
        assert_eq!(container_mark(ClusterId::new(), Some(&labels)), None);
        assert_eq!(container_mark(cluster, Some(&HashMap::new())), None);
        assert_eq!(container_mark(cluster, None), None);

        let mut older = labels;
        for label in [HOST, JOB, TOKEN] {
            older.remove(label);
        }
        let mark = container_mark(cluster, Some(&older)).expect("one of a release without these labels");
        assert_eq!((mark.instance, mark.made_by, mark.host), (instance, None, None));
    }
}
