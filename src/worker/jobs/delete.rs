//! Removing an instance from its host. Whatever is gone already is success.

use std::sync::Arc;

use super::{
    super::{Context, leases::Held},
    JobError, step,
};
use crate::{backend::{Compute, Fabric}, core::queue::claim::Claimed};

pub(super) async fn perform(context: &Context, job: &Claimed, held: &Arc<Held>) -> Result<(), JobError> {
    let instance = job.lease.instance;
    step(context, held, "unpublish", context.fabric.unpublish(instance)).await?;
    step(context, held, "remove", context.compute.remove(instance)).await?;
    step(context, held, "network", context.fabric.release_network(job.network)).await?;
    Ok(())
}
