//! What handlers need. Nothing here is state of a client: any replica answers any request.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::{
    api::wait::Watch,
    config::instances::InstanceConfig,
    core::{
        db::DualDb,
        identity::{Identity, api_key::KeyRing, rate_limit::Limiter},
        queue::notify::Notifier,
        read_your_writes::ReadYourWrites,
    },
    http::metrics::RenderMetrics,
};

pub struct ApiState {
    pub db: DualDb,
    pub identity: Identity,
    pub limiter: Limiter,
    pub ring: Arc<KeyRing>,
    pub notifier: Notifier,
    pub instances: InstanceConfig,
    pub instance_watch: Watch,
    pub job_watch: Watch,
    pub read_your_writes: ReadYourWrites,
    /// Renders the metrics of this process.
    pub metrics: RenderMetrics,
    /// Readiness fails from here on.
    pub stopping: CancellationToken,
}
