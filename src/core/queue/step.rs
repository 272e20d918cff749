//! The steps of an attempt as the job's owner sees them: what the worker does, since when, and how it ended.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::core::{text::CleanText, text_enum::text_enum};

/// One step of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// What the step does.
    pub name: StepName,
    /// How it stands.
    pub status: StepStatus,
    /// When it began, by the worker's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// When it ended, by the worker's clock.
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
    /// Its progress, or why it failed.
    #[schema(value_type = Option<String>)]
    pub detail: Option<CleanText>,
}

text_enum! {
    /// What a step does.
    pub enum StepName as StepName {
        /// Makes the image available on the host.
        Image = "image",
        /// Prepares the network; for a delete, releases it.
        Network = "network",
        /// Creates the container, or finds the one that exists.
        Container = "container",
        /// Starts the container.
        Start = "start",
        /// Publishes the ports.
        Publish = "publish",
        /// Withdraws the published ports.
        Unpublish = "unpublish",
        /// Removes the container.
        Remove = "remove",
        /// Removes what a failed attempt had made.
        Undo = "undo",
    }
}

text_enum! {
    /// How a step stands.
    pub enum StepStatus as StepStatus {
        /// It has begun.
        Running = "running",
        /// It has ended as it should.
        Succeeded = "succeeded",
        /// It has failed; `detail` says why.
        Failed = "failed",
        /// What the attempt had made was removed again.
        Undone = "undone",
    }
}
