//! What is done for each kind of job. Level-triggered: look at what is there, move it towards what is wanted.

mod delete;
mod provision;
mod start;
mod undo;

use std::sync::Arc;

use super::{
    Context,
    leases::{Halt, Held},
};
use crate::{backend::{Attachment, Attempt, BackendError, Guest, NetworkPlan, PortPlan}, core::{instances::spec::Protocol, queue::{claim::Claimed, job::JobKind, step::StepStatus}}};

/// Why an attempt did not succeed.
#[derive(Debug)]
pub enum JobError {
    Halted(Halt),
    Backend(BackendError),
}

impl From<Halt> for JobError {
    fn from(halt: Halt) -> Self {
        Self::Halted(halt)
    }
}

impl From<BackendError> for JobError {
    fn from(error: BackendError) -> Self {
        Self::Backend(error)
    }
}

/// Does the job; answers the container's id where there is one.
pub(super) async fn perform(context: &Context, job: &Claimed, held: &Arc<Held>) -> Result<Option<String>, JobError> {
    match job.kind {
        JobKind::Provision => undo::on_failure(context, job, held, provision::perform(context, job, held)).await,
        JobKind::Start => undo::on_failure(context, job, held, start::perform(context, job, held)).await,
        JobKind::Delete => delete::perform(context, job, held).await.map(|()| None),
    }
}

/// Cleans up after an attempt that was cut off.
pub(super) async fn abandon(context: &Context, job: &Claimed, held: &Arc<Held>) {
    match job.kind {
        JobKind::Provision | JobKind::Start => undo::undo(context, job, held).await,
        // What is left of it is removed by the next attempt.
        JobKind::Delete => {}
    }
}

/// Runs one step: a checkpoint, the work, and its record.
async fn step<T>(
    context: &Context,
    held: &Arc<Held>,
    name: &str,
    work: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, JobError> {
    context.leases.checkpoint(held).await?;
    held.steps.begin(name);
    let result = work.await;
    match &result {
        Ok(_) => held.steps.end(name, StepStatus::Succeeded, None),
        Err(error) => held.steps.end(name, StepStatus::Failed, Some(error.to_string().into())),
    }
    Ok(result?)
}

fn attempt(job: &Claimed) -> Attempt {
    Attempt { job: job.lease.job, token: job.lease.token }
}

fn guest(context: &Context, job: &Claimed) -> Guest {
    Guest {
        instance: job.lease.instance,
        generation: job.generation,
        made_by: attempt(job),
        host: context.me.host,
        image: job.image.clone(),
        command: job.command.clone(),
        env: job.env.clone(),
        cpu_millis: job.cpu_millis,
        memory_mib: job.memory_mib,
    }
}

fn attachment(job: &Claimed) -> Attachment {
    let port = |port: &crate::core::instances::spec::Port| PortPlan {
        container: port.container,
        host: port.host,
        protocol: match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        },
    };
    Attachment {
        network: NetworkPlan { id: job.network, cidr: job.cidr },
        address: job.address,
        mac: job.mac.clone(),
        ports: job.ports.iter().map(port).collect(),
    }
}
