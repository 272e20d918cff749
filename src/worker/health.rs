//! The worker's own listener: whether it lives, whether it works, and its metrics.

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

/// Shared with the heartbeat.
#[derive(Clone)]
pub struct Health {
    db: DualDb,
    started: Instant,
    /// Milliseconds after `started` of the last heartbeat that succeeded.
    beat_at: Arc<AtomicU64>,
    lease: Duration,
    stopping: CancellationToken,
}

impl Health {
    pub fn new(db: DualDb, lease: Duration, stopping: CancellationToken) -> Self {
        Self { db, started: Instant::now(), beat_at: Arc::default(), lease, stopping }
    }

    pub(super) fn beat(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beat_at.store(now, Ordering::Relaxed);
    }

    fn silent_for(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.beat_at.load(Ordering::Relaxed)))
    }

    /// The last heartbeat is younger than a lease, and the primary takes the next one.
    async fn ready(self) -> HttpResponse {
        let primary = self.db.health().await.primary;
        let silent = self.silent_for();
        let works = primary && silent < self.lease && !self.stopping.is_cancelled();
        let status = if works { "ready" } else { "unavailable" };
        let body = json!({"status": status, "primary": primary, "heartbeat_age_s": silent.as_secs_f64()});
        if works {
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
