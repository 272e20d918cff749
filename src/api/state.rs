//! What handlers need. Nothing here is state of a client: any replica answers any request.

use tokio_util::sync::CancellationToken;

use crate::{
    api::wait::Watch,
    core::{
        db::DualDb,
        identity::{ApiKeyService, Identity, rate_limit::RateLimiter},
        instances::InstanceService,
        queue::notify::Notifier,
        read_your_writes::ReadYourWrites,
    },
    http::metrics::RenderMetrics,
};

pub struct ApiState {
    pub db: DualDb,
    pub identity: Identity,
    pub limiter: RateLimiter,
    pub keys: ApiKeyService,
    pub notifier: Notifier,
    pub instances: InstanceService,
    pub instance_watch: Watch,
    pub job_watch: Watch,
    pub read_your_writes: ReadYourWrites,
    /// Renders the metrics of this process.
    pub metrics: RenderMetrics,
    /// Readiness fails from here on.
    pub stopping: CancellationToken,
}
