//! What is done for each kind of job. Level-triggered: look at what is there, move it towards what is wanted.

mod delete;
mod provision;
mod start;
mod undo;

use std::sync::Arc;

use super::{
    ProvisionWorker,
    leases::{ActiveJob, StopReason},
};
use crate::{
    backend::{Attempt, BackendError, ContainerSpec, NetworkAttachment, NetworkPlan, PortPlan},
    core::{
        instances::spec::Protocol,
        queue::{
            claim::Claimed,
            job::JobKind,
            step::{StepName, StepStatus},
        },
    },
};

/// Why an attempt did not succeed.
#[derive(Debug)]
pub enum JobError {
    Halted(StopReason),
    Backend(BackendError),
}

impl From<StopReason> for JobError {
    fn from(stop_reason: StopReason) -> Self {
        Self::Halted(stop_reason)
    }
}

impl From<BackendError> for JobError {
    fn from(error: BackendError) -> Self {
        Self::Backend(error)
    }
}

/// Does the job; answers the container's id where there is one.
pub(super) async fn perform(
    worker: &ProvisionWorker,
    job: &Claimed,
    active: &Arc<ActiveJob>,
) -> Result<Option<String>, JobError> {
    match job.kind {
        JobKind::Provision => undo::on_failure(worker, job, active, provision::perform(worker, job, active)).await,
        JobKind::Start => undo::on_failure(worker, job, active, start::perform(worker, job, active)).await,
        JobKind::Delete => delete::perform(worker, job, active).await.map(|()| None),
    }
}

/// Cleans up after an attempt that was cut off.
pub(super) async fn abandon(worker: &ProvisionWorker, job: &Claimed, active: &Arc<ActiveJob>) {
    match job.kind {
        JobKind::Provision | JobKind::Start => undo::undo(worker, job, active).await,
        // What is left of it is removed by the next attempt.
        JobKind::Delete => {}
    }
}

/// Runs one step: a checkpoint, the work, and its record.
async fn step<T>(
    worker: &ProvisionWorker,
    active: &Arc<ActiveJob>,
    name: StepName,
    work: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, JobError> {
    worker.leases.checkpoint(active).await?;
    active.steps.begin(name);
    let result = work.await;
    match &result {
        Ok(_) => active.steps.end(name, StepStatus::Succeeded, None),
        Err(error) => active.steps.end(name, StepStatus::Failed, Some(error.to_string().into())),
    }
    Ok(result?)
}

fn attempt(job: &Claimed) -> Attempt {
    Attempt { job: job.lease.job, token: job.lease.token }
}

fn spec(worker: &ProvisionWorker, job: &Claimed) -> ContainerSpec {
    ContainerSpec {
        instance: job.lease.instance,
        generation: job.generation,
        made_by: attempt(job),
        host: worker.me.host,
        image: job.image.clone(),
        command: job.command.clone(),
        env: job.env.clone(),
        cpu_millis: job.cpu_millis,
        memory_mib: job.memory_mib,
    }
}

fn attachment(job: &Claimed) -> NetworkAttachment {
    let port = |port: &crate::core::instances::spec::Port| PortPlan {
        container: port.container,
        host: port.host,
        protocol: match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        },
    };
    NetworkAttachment {
        network: NetworkPlan { id: job.network, cidr: job.cidr },
        address: job.address,
        mac: job.mac.clone(),
        ports: job.ports.iter().map(port).collect(),
    }
}
