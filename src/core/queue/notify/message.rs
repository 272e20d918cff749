//! The bell's message. No facts, no secrets: whoever reads it asks Postgres.

use serde_json::json;

use crate::core::{id::JobId, queue::job::JobKind};

/// The wake-up for one job. Workers do not read it: they claim whatever is next. It names the job for those who look at a
/// list, and for workers of an earlier release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProvisionJob {
    pub job: JobId,
    pub kind: JobKind,
}

impl ProvisionJob {
    pub fn new(job: JobId, kind: JobKind) -> Self {
        Self { job, kind }
    }

    pub fn encode(&self) -> String {
        json!({"v": 1, "job": self.job, "kind": self.kind.as_str()}).to_string()
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
