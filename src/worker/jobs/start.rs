//! Starting an instance again: the container that is there, with all that it holds, is started.
//!
//! Neither its image nor the registry is needed for that, so none is asked for. Only where there is no container of the
//! instance's generation is one provisioned.

use std::sync::Arc;

use super::{
    super::{Context, leases::Held},
    JobError, attachment, provision, step,
};
use crate::{backend::{Compute, Fabric}, core::queue::claim::Claimed};

pub(super) async fn perform(context: &Context, job: &Claimed, held: &Arc<Held>) -> Result<String, JobError> {
    let (instance, attachment) = (job.lease.instance, attachment(job));
    let (compute, fabric) = (&context.compute, &context.fabric);
    let found = step(context, held, "container", compute.inspect(instance)).await?;
    let Some(container) = found.filter(|found| found.generation == job.generation) else {
        return provision::perform(context, job, held).await;
    };
    let network = async {
        fabric.ensure_network(&attachment.network).await?;
        fabric.rejoin(instance, &attachment).await
    };
    step(context, held, "network", network).await?;
    step(context, held, "start", compute.start(instance)).await?;
    step(context, held, "publish", fabric.publish(instance, &attachment)).await?;
    Ok(container.container_id)
}
