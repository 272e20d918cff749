//! The request that creates a container, and the hash that shows whether an existing container is equal.
//!
//! The same spec and attachment have the same hash in every process, whatever the order of ports. `command: None` runs
//! the image's own command; `Some` replaces its CMD and keeps its ENTRYPOINT, as `docker run IMAGE COMMAND…` does. The
//! limits and the missing privileges below hold for every container; no field of a tenant can widen them.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, EndpointIpamConfig, EndpointSettings, HostConfig, HostConfigLogConfig, NetworkingConfig,
    PortBinding, RestartPolicy, RestartPolicyNameEnum,
};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::labels;
use crate::{
    backend::{ContainerSpec, NetworkAttachment, PortPlan},
    core::id::ClusterId,
};

/// Part of the hash. Raise it when the fixed settings below change and existing containers should be replaced.
const HASH_VERSION: u32 = 1;
/// The processes and threads of one container.
const PIDS_MAX: i64 = 512;
const EVERY_ADDRESS: &str = "0.0.0.0";

/// Returns the JSON body of the request that creates the container.
///
/// # Errors
/// None in practice: bollard's types serialise.
pub(super) fn body(
    cluster: ClusterId,
    container_spec: &ContainerSpec,
    attachment: &NetworkAttachment,
) -> Result<Value, serde_json::Error> {
    let mut body = serde_json::to_value(request(cluster, container_spec, attachment))?;
    // Up to API 1.43 the engine reads the MAC address only here, and bollard's type no longer has this field.
    body["MacAddress"] = Value::from(attachment.mac.as_str());
    Ok(body)
}

/// Returns the SHA-256, in hex, of everything that shapes the container.
pub(super) fn hash(container_spec: &ContainerSpec, attachment: &NetworkAttachment) -> String {
    let mut ports: Vec<_> =
        attachment.ports.iter().map(|port| (port.protocol.as_str(), port.container, port.host)).collect();
    ports.sort_unstable();
    let network = &attachment.network;
    // Only arrays, whose order is fixed. JSON delimits the parts, so that no two inputs give the same text.
    let shape = json!([
        HASH_VERSION,
        container_spec.image,
        container_spec.command,
        container_spec.env.iter().collect::<Vec<_>>(),
        container_spec.cpu_millis,
        container_spec.memory_mib,
        [network.id.to_string(), network.cidr.to_string()],
        attachment.address.to_string(),
        attachment.mac,
        ports,
    ]);
    HEXLOWER.encode(&Sha256::digest(shape.to_string()))
}

/// The period of the CPU quota, in microseconds: the kernel's default.
const CPU_PERIOD_US: i64 = 100_000;

fn request(cluster: ClusterId, container_spec: &ContainerSpec, attachment: &NetworkAttachment) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(container_spec.image.clone()),
        cmd: container_spec.command.clone(),
        env: Some(container_spec.env.iter().map(|(key, value)| format!("{key}={value}")).collect()),
        labels: Some(labels::for_container(cluster, container_spec, hash(container_spec, attachment))),
        exposed_ports: Some(attachment.ports.iter().map(port_key).collect()),
        host_config: Some(host_config(container_spec, attachment)),
        networking_config: Some(networking_config(attachment)),
        ..Default::default()
    }
}

fn host_config(container_spec: &ContainerSpec, attachment: &NetworkAttachment) -> HostConfig {
    let memory = i64::from(container_spec.memory_mib) * 1024 * 1024;
    HostConfig {
        // A quota and not `nano_cpus`, which the engine refuses above the host's number of cores; cores are
        // overcommitted here (ADR 9).
        cpu_period: Some(CPU_PERIOD_US),
        cpu_quota: Some(i64::from(container_spec.cpu_millis) * CPU_PERIOD_US / 1000),
        memory: Some(memory),
        // The limit of memory and swap together, so that there is no swap. A kernel without swap accounting ignores it.
        memory_swap: Some(memory),
        pids_limit: Some(PIDS_MAX),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        // With raw sockets a container could forge packets of others on the shared bridge.
        cap_drop: Some(vec!["NET_RAW".to_owned()]),
        privileged: Some(false),
        init: Some(false),
        // Restarts are decided by the worker and Postgres, never by the engine.
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), "10m".to_owned()),
                ("max-file".to_owned(), "3".to_owned()),
            ])),
        }),
        network_mode: Some(labels::network_name(attachment.network.id)),
        port_bindings: Some(attachment.ports.iter().map(|port| (port_key(port), Some(vec![binding(port)]))).collect()),
        ..Default::default()
    }
}

fn networking_config(attachment: &NetworkAttachment) -> NetworkingConfig {
    let name = labels::network_name(attachment.network.id);
    NetworkingConfig { endpoints_config: Some(HashMap::from([(name, endpoint_settings(attachment))])) }
}

/// Returns how a container is attached to its network.
pub(super) fn endpoint_settings(attachment: &NetworkAttachment) -> EndpointSettings {
    EndpointSettings {
        ipam_config: Some(EndpointIpamConfig {
            ipv4_address: Some(attachment.address.to_string()),
            ..Default::default()
        }),
        // From API 1.44 on the engine reads the MAC address here.
        mac_address: Some(attachment.mac.clone()),
        ..Default::default()
    }
}

/// Returns the engine's name of a container's port: `80/tcp`.
pub(super) fn port_key(port: &PortPlan) -> String {
    format!("{}/{}", port.container, port.protocol.as_str())
}

fn binding(port: &PortPlan) -> PortBinding {
    PortBinding { host_ip: Some(EVERY_ADDRESS.to_owned()), host_port: Some(port.host.to_string()) }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use super::*;
    use crate::{
        backend::{Attempt, NetworkPlan, TransportProtocol},
        core::id::{HostId, InstanceId, JobId, NetworkId},
    };

    fn container_spec() -> ContainerSpec {
        ContainerSpec {
            instance: InstanceId::new(),
            generation: 1,
            made_by: Attempt { job: JobId::new(), token: 1 },
            host: HostId::new(),
            image: "app-demo:1".to_owned(),
            command: Some(vec!["sleep".to_owned(), "9".to_owned()]),
            env: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
            cpu_millis: 250,
            memory_mib: 64,
        }
    }

    fn attachment(network: NetworkId) -> NetworkAttachment {
        let port = |container, host| PortPlan { container, host, protocol: TransportProtocol::Tcp };
        NetworkAttachment {
            network: NetworkPlan { id: network, cidr: "10.9.0.0/24".parse().expect("a CIDR") },
            address: Ipv4Addr::new(10, 9, 0, 5),
            mac: "02:00:00:00:00:05".to_owned(),
            ports: vec![port(80, 20_080), port(443, 20_443)],
        }
    }

    #[test]
    fn hash_depends_only_on_what_shapes_the_container() {
        let (spec, attached) = (container_spec(), attachment(NetworkId::new()));
        let mut reversed = attached.clone();
        reversed.ports.reverse();
        let made_by = Attempt { job: JobId::new(), token: 9 };
        let same =
            ContainerSpec { instance: InstanceId::new(), made_by, host: HostId::new(), generation: 2, ..spec.clone() };
        assert_eq!(hash(&spec, &attached), hash(&same, &reversed));
        assert_eq!(hash(&spec, &attached).len(), 64);

        let mut other_port = attached.clone();
        other_port.ports[0].host = 20_081;
        let others = [
            hash(&ContainerSpec { image: "app-demo:2".to_owned(), ..spec.clone() }, &attached),
            hash(&ContainerSpec { command: None, ..spec.clone() }, &attached),
            hash(&ContainerSpec { command: Some(vec!["sleep 9".to_owned()]), ..spec.clone() }, &attached),
            hash(&ContainerSpec { env: BTreeMap::from([("A".to_owned(), "c".to_owned())]), ..spec.clone() }, &attached),
            hash(&ContainerSpec { cpu_millis: 251, ..spec.clone() }, &attached),
            hash(&ContainerSpec { memory_mib: 65, ..spec.clone() }, &attached),
            hash(&spec, &NetworkAttachment { address: Ipv4Addr::new(10, 9, 0, 6), ..attached.clone() }),
            hash(&spec, &NetworkAttachment { mac: "02:00:00:00:00:06".to_owned(), ..attached.clone() }),
            hash(&spec, &attachment(NetworkId::new())),
            hash(&spec, &other_port),
        ];
        for other in others {
            assert_ne!(hash(&spec, &attached), other);
        }
    }

    #[test]
    fn request_has_the_fields_that_the_engine_reads() {
        let network = NetworkId::new();
        let body = body(ClusterId::new(), &container_spec(), &attachment(network)).expect("JSON");
        assert_eq!(body["MacAddress"], "02:00:00:00:00:05");
        assert_eq!(body["ExposedPorts"]["80/tcp"], json!({}));
        assert_eq!(body["HostConfig"]["PortBindings"]["443/tcp"][0]["HostPort"], "20443");
        assert_eq!(body["HostConfig"]["CpuQuota"], 25_000);
        assert_eq!(body["HostConfig"]["Memory"], body["HostConfig"]["MemorySwap"]);
        assert_eq!(body["HostConfig"]["NetworkMode"], format!("app-{network}"));
        assert_eq!(body["Env"], json!(["A=b"]));
    }
}
