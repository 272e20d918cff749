//! Image, network, container, start, publish: each idempotent, each undone in reverse when a later one fails.

use std::sync::Arc;

use super::{
    super::{
        Context,
        leases::{Halt, Held},
    },
    JobError, attachment, guest, step,
};
use crate::{
    backend::{BackendError, Compute, Fabric},
    core::{jobs::step::StepStatus, protocol::claim::Claimed},
};

pub(super) async fn perform(context: &Context, job: &Claimed, held: &Arc<Held>) -> Result<String, JobError> {
    let error = match provision(context, job, held).await {
        Ok(container_id) => return Ok(container_id),
        Err(error) => error,
    };
    match &error {
        // Another worker may be at it: hands off.
        JobError::Halted(Halt::Lost) => {}
        JobError::Halted(Halt::Cancelled) | JobError::Backend(_) => undo(context, job, held).await,
    }
    Err(error)
}

async fn provision(context: &Context, job: &Claimed, held: &Arc<Held>) -> Result<String, JobError> {
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

/// Leaves nothing behind. What cannot be undone now is undone by the next attempt, by the
/// delete, or by the observer.
pub(super) async fn undo(context: &Context, job: &Claimed, held: &Arc<Held>) {
    held.steps.begin("undo");
    let undone: Result<(), BackendError> = async {
        context.fabric.unpublish(job.lease.instance).await?;
        context.compute.remove(job.lease.instance).await?;
        context.fabric.release_network(job.network).await?;
        Ok(())
    }
    .await;
    match undone {
        Ok(()) => held.steps.end("undo", StepStatus::Undone, None),
        Err(error) => held.steps.end("undo", StepStatus::Failed, Some(error.to_string())),
    }
}
