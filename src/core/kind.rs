//! The kinds of jobs: the vocabulary that jobs and instances share.

use std::{fmt, str::FromStr};

use utoipa::ToSchema;

/// What is to be done. A worker leaves kinds that it does not know to a newer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum JobKind {
    /// Create the container with its network and start it.
    Provision,
    /// Start the container that is there, by its restart policy.
    Start,
    /// Remove the container and what belongs to it.
    Delete,
}

impl JobKind {
    pub const ALL: &'static [Self] = &[Self::Provision, Self::Start, Self::Delete];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provision => "provision",
            Self::Start => "start",
            Self::Delete => "delete",
        }
    }
}

impl FromStr for JobKind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text).ok_or(())
    }
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_read_back() {
        for kind in JobKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
        }
        assert!("unknown".parse::<JobKind>().is_err());
    }
}
