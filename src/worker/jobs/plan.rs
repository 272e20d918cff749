//! Translates a claimed job for the backends: its attempt, its container and its network attachment.

use super::super::provision_worker::ProvisionWorker;
use crate::{
    backend::{Attempt, ContainerSpec, NetworkAttachment, NetworkPlan, PortPlan, TransportProtocol},
    core::{
        instances::spec::{Port, Protocol},
        queue::claim::Claimed,
    },
};

/// Returns the attempt that this claim makes.
pub(super) fn attempt(job: &Claimed) -> Attempt {
    Attempt { job: job.lease.job, token: job.lease.token }
}

/// Returns the container that the job requires.
pub(super) fn container_spec(worker: &ProvisionWorker, job: &Claimed) -> ContainerSpec {
    ContainerSpec {
        instance: job.lease.instance,
        generation: job.generation,
        made_by: attempt(job),
        host: worker.identity.host,
        image: job.image.clone(),
        command: job.command.clone(),
        env: job.env.clone(),
        cpu_millis: job.cpu_millis,
        memory_mib: job.memory_mib,
    }
}

/// Returns how the container is attached to its network.
pub(super) fn attachment(job: &Claimed) -> NetworkAttachment {
    NetworkAttachment {
        network: NetworkPlan { id: job.network, cidr: job.cidr },
        address: job.address,
        mac: job.mac.clone(),
        ports: job.ports.iter().map(port).collect(),
    }
}

fn port(port: &Port) -> PortPlan {
    let protocol = match port.protocol {
        Protocol::Tcp => TransportProtocol::Tcp,
        Protocol::Udp => TransportProtocol::Udp,
    };
    PortPlan { container: port.container, host: port.host, protocol }
}
