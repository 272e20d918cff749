//! The message in a Redis list. It carries the id and the kind of a job only: workers read the job from Postgres.

use serde_json::json;

use crate::core::{id::JobId, queue::job::JobKind};

/// The wake-up for one job.
///
/// A worker does not decode it: it claims the jobs that are next in Postgres. The message names the job for operators
/// who inspect a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProvisionJob {
    /// The job that was queued.
    pub job: JobId,
    /// The kind of that job.
    pub kind: JobKind,
}

impl ProvisionJob {
    /// Makes the message for a job.
    pub fn new(job: JobId, kind: JobKind) -> Self {
        Self { job, kind }
    }

    /// Returns the message as JSON, `{"v":1,"job":…,"kind":…}`.
    pub fn encode(&self) -> String {
        json!({"v": 1, "job": self.job, "kind": self.kind}).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_its_version_the_job_and_the_kind() {
        let job = JobId::new();

        let message: serde_json::Value =
            serde_json::from_str(&ProvisionJob::new(job, JobKind::Delete).encode()).expect("JSON");

        assert_eq!(message, json!({"v": 1, "job": job.to_string(), "kind": "delete"}));
    }
}
