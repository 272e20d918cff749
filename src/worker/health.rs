//! The worker's own listener: liveness, readiness and metrics.
//!
//! The worker is ready while its last successful heartbeat is younger than a lease, the primary accepts the next one,
//! and no shutdown has been requested. The heartbeat's age is computed at each request, so that it grows when the loop
//! hangs.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use actix_web::{HttpResponse, dev::Server, web};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    core::db::DualDb,
    http::{listener, metrics::RenderMetrics},
};

/// The health of one worker; a clone shares it.
#[derive(Clone)]
pub struct Health {
    db: DualDb,
    started_at: Instant,
    /// The last successful heartbeat, in milliseconds after `started_at`.
    heartbeat_ms: Arc<AtomicU64>,
    lease: Duration,
    stopping: CancellationToken,
}

impl Health {
    /// Returns the health of a worker that starts now. `lease`: how long it is ready without a heartbeat; `stopping`:
    /// from then on it is not ready.
    pub fn new(db: DualDb, lease: Duration, stopping: CancellationToken) -> Self {
        Self { db, started_at: Instant::now(), heartbeat_ms: Arc::default(), lease, stopping }
    }

    /// Records that a heartbeat has succeeded.
    pub(super) fn record_heartbeat(&self) {
        let now = u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heartbeat_ms.store(now, Ordering::Relaxed);
    }

    fn heartbeat_age(&self) -> Duration {
        let heartbeat_at = Duration::from_millis(self.heartbeat_ms.load(Ordering::Relaxed));
        self.started_at.elapsed().saturating_sub(heartbeat_at)
    }

    async fn ready(self) -> HttpResponse {
        let primary = self.db.health().await.primary;
        let heartbeat_age = self.heartbeat_age();
        let is_ready = primary && heartbeat_age < self.lease && !self.stopping.is_cancelled();
        let status = if is_ready { "ready" } else { "unavailable" };
        let body = json!({"status": status, "primary": primary, "heartbeat_age_s": heartbeat_age.as_secs_f64()});
        if is_ready {
            HttpResponse::Ok().json(body)
        } else {
            HttpResponse::ServiceUnavailable().insert_header(("Retry-After", "1")).json(body)
        }
    }
}

/// Serves `/health/live`, `/health/ready` and `/metrics`.
///
/// # Errors
/// When the socket cannot be served.
pub fn serve(socket: TcpListener, health: Health, metrics: RenderMetrics) -> anyhow::Result<Server> {
    listener::serve(socket, 1, Duration::from_secs(1), move |config| {
        let (ready, metrics) = (health.clone(), metrics.clone());
        config
            .route("/health/live", web::get().to(|| async { HttpResponse::Ok().json(json!({"status": "live"})) }))
            .route("/health/ready", web::get().to(move || ready.clone().ready()))
            .route(
                "/metrics",
                web::get().to(move || {
                    let text = metrics();
                    async move { HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(text) }
                }),
            );
    })
}
