//! Best-effort wake-ups: Redis lists that let a worker claim a job at once instead of at its next poll.
//!
//! The API pushes a message per accepted job (`Notifier`), and each worker waits on two lists (`Subscriber`): that of
//! its host and that of jobs without a host. Only the claim in Postgres decides which job runs, never a message. So a
//! lost message costs one poll interval, and a repeated or reordered one costs a claim that finds nothing. Only these
//! two types use the Redis client.

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

/// The workers that a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// The worker of the host on which the instance is placed.
    Host(HostId),
    /// The worker of any host: the instance has no host yet.
    Any,
}

impl Channel {
    /// Returns the Redis key of the list. The cluster's id keeps two clusters on one Redis apart.
    fn redis_key(self, cluster: ClusterId) -> String {
        match self {
            Self::Host(host) => RedisKey::HostWakeups(host).name(cluster),
            Self::Any => RedisKey::AnyWakeups.name(cluster),
        }
    }
}
