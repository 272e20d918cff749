//! The restart policy: whether an instance's process is started again when it ends. `protocol::observe` applies it.

use std::{fmt, str::FromStr};

use utoipa::ToSchema;

/// What follows when an instance's process ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum RestartPolicy {
    #[default]
    No,
    OnFailure,
    Always,
}

impl RestartPolicy {
    pub const ALL: &'static [Self] = &[Self::No, Self::OnFailure, Self::Always];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure => "on_failure",
            Self::Always => "always",
        }
    }
}

impl FromStr for RestartPolicy {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|policy| policy.as_str() == text).ok_or(())
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_read_back() {
        for policy in RestartPolicy::ALL {
            assert_eq!(policy.as_str().parse(), Ok(*policy));
        }
        assert!("never".parse::<RestartPolicy>().is_err());
    }
}
