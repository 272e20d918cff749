//! The bell's message. No facts, no secrets: whoever reads it asks Postgres.

use serde::{Deserialize, Serialize};

use crate::core::{id::JobId, kind::JobKind};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvisionJob {
    v: u8,
    pub job: JobId,
    #[serde(with = "kind_text")]
    pub kind: JobKind,
}

impl ProvisionJob {
    pub fn new(job: JobId, kind: JobKind) -> Self {
        Self { v: 1, job, kind }
    }

    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("ids and fixed texts are always JSON")
    }

    /// `None` for what this version does not understand: a newer worker's, or garbage.
    pub fn decode(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().filter(|message: &Self| message.v == 1)
    }
}

mod kind_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::core::kind::JobKind;

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub fn serialize<S: Serializer>(kind: &JobKind, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(kind.as_str())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JobKind, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(|()| D::Error::custom("unknown kind"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back_and_ignores_what_it_does_not_know() {
        let message = ProvisionJob::new(JobId::new(), JobKind::Delete);
        assert_eq!(ProvisionJob::decode(&message.encode()), Some(message));
        for text in [
            "",
            "{}",
            "null",
            &message.encode().replace("\"v\":1", "\"v\":2"),
            &message.encode().replace("delete", "dance"),
        ] {
            assert_eq!(ProvisionJob::decode(text), None, "{text}");
        }
    }
}
