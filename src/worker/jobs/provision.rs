//! Image, network, container, start, publish: each can be repeated.

use std::sync::Arc;

use super::{
    super::{
        Context,
        leases::{Halt, Held},
    },
    JobError, attachment, guest, step,
};
use crate::{backend::{Compute, Fabric}, core::queue::{claim::Claimed, step::StepStatus}};

pub(super) async fn perform(context: &Context, job: &Claimed, held: &Arc<Held>) -> Result<String, JobError> {
    let (guest, attachment) = (guest(context, job), attachment(job));
    let (compute, fabric) = (&context.compute, &context.fabric);
    let progress = |line| held.steps.progress("image", line);
    let image = step(context, held, "image", compute.ensure_image(&guest.image, &progress));
    // The one step that can take minutes: its owner need not wait for it to change their mind.
    tokio::select! {
        done = image => done?,
        () = held.cancelled.cancelled() => {
            held.steps.end("image", StepStatus::Failed, Some("cancelled".into()));
            return Err(Halt::Cancelled.into());
        }
    }
    step(context, held, "network", fabric.ensure_network(&attachment.network)).await?;
    let container_id = step(context, held, "container", compute.create(&guest, &attachment)).await?;
    step(context, held, "start", compute.start(guest.instance)).await?;
    step(context, held, "publish", fabric.publish(guest.instance, &attachment)).await?;
    Ok(container_id)
}
