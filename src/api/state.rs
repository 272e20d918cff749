//! What handlers need. Nothing here is state of a client: any replica answers any request.

use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    api::wait::Watch,
    config::instances::InstanceConfig,
    core::{
        db::DualDb,
        identity::{ApiKeyService, Identity, rate_limit::RateLimiter},
        queue::notify::Notifier,
        read_your_writes::ReadYourWrites,
    },
};

pub struct ApiState {
    pub db: DualDb,
    pub identity: Identity,
    pub limiter: RateLimiter,
    pub keys: ApiKeyService,
    pub notifier: Notifier,
    pub instances: InstanceConfig,
    pub instance_watch: Watch,
    pub job_watch: Watch,
    pub read_your_writes: ReadYourWrites,
    pub metrics: PrometheusHandle,
    /// Readiness fails from here on.
    pub stopping: CancellationToken,
}
