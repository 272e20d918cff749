//! What handlers share: connections, services and settings. It holds nothing about a client, so every replica can
//! answer every request.

use tokio_util::sync::CancellationToken;

use crate::{
    api::wait::StatusWatch,
    core::{
        db::DualDb,
        id::{InstanceId, JobId},
        identity::{ApiKeyService, Identity, rate_limit::RateLimiter},
        instances::{InstanceService, Status},
        queue::{job::JobStatus, notify::Notifier},
        read_your_writes::ReadYourWrites,
    },
    http::metrics::RenderMetrics,
};

/// The statuses of instances that requests wait for.
pub type InstanceWatch = StatusWatch<InstanceId, Status>;

/// The statuses of jobs that requests wait for.
pub type JobWatch = StatusWatch<JobId, JobStatus>;

/// The state that all handlers share; one value per process.
pub struct ApiState {
    /// Postgres: the primary and the replica.
    pub db: DualDb,
    /// Verifies API keys.
    pub identity: Identity,
    /// Counts the requests of each key.
    pub limiter: RateLimiter,
    /// Creates, changes and revokes API keys.
    pub keys: ApiKeyService,
    /// The connection to Redis that `/health/ready` reports on.
    pub notifier: Notifier,
    /// Creates, reads and deletes instances.
    pub instances: InstanceService,
    /// The statuses of instances that requests wait for.
    pub instance_watch: InstanceWatch,
    /// The statuses of jobs that requests wait for.
    pub job_watch: JobWatch,
    /// Decides whether a list may be read from the replica.
    pub read_your_writes: ReadYourWrites,
    /// Renders the metrics of this process.
    pub metrics: RenderMetrics,
    /// Cancelled when a stop of the process is requested: readiness fails and waits end.
    pub stopping: CancellationToken,
}
