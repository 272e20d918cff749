//! A job's steps as its owner sees them: what the worker does, when, and how it ended.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::core::{text::CleanText, text_enum::text_enum};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// `image`, `network`, `container`, `start`, `publish`, `remove`, …
    pub name: String,
    pub status: StepStatus,
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
    /// Progress, or why it failed.
    #[schema(value_type = Option<String>)]
    pub detail: Option<CleanText>,
}

text_enum! {
    /// How a step stands.
    pub enum StepStatus as StepStatus {
        Running = "running",
        Succeeded = "succeeded",
        Failed = "failed",
        /// What it made was removed again.
        Undone = "undone",
    }
}
