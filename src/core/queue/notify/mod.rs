//! The doorbell: Redis lists tell workers at once that Postgres has a job for them.
//!
//! A message carries a job's id and nothing to believe. Losing, repeating or reordering messages is harmless: workers
//! poll, and a claim decides. `Notifier` pushes, `Subscriber` pops; both are all that is known of the Redis client here.

mod message;
mod notifier;
mod subscriber;

pub use message::ProvisionJob;
pub use notifier::Notifier;
pub use subscriber::{Subscriber, Wakeup};

use crate::core::{
    id::{ClusterId, HostId},
    redis::RedisKey,
};

/// Whom a bell is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// The host where the instance lives.
    Host(HostId),
    /// Any host: the instance is not placed yet.
    Any,
}

impl Channel {
    /// The list's name. The cluster's id keeps two installations on one Redis apart.
    fn list(self, cluster: ClusterId) -> String {
        match self {
            Self::Host(host) => RedisKey::HostWakeups(host).name(cluster),
            Self::Any => RedisKey::AnyWakeups.name(cluster),
        }
    }
}
