//! Stopping: the first SIGTERM or SIGINT asks for it, the second insists.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Both stages, to be handed to whoever has to stop.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Finish what is begun, begin nothing.
    pub requested: CancellationToken,
    /// Let go at once.
    pub forced: CancellationToken,
}

impl Shutdown {
    /// Listens for signals from now on.
    ///
    /// # Errors
    /// When no handler can be installed.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::default();
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stages = shutdown.clone();
        tokio::spawn(async move {
            either(&mut term, &mut int).await;
            tracing::info!("stopping");
            stages.requested.cancel();
            either(&mut term, &mut int).await;
            tracing::warn!("stopping at once");
            stages.forced.cancel();
        });
        Ok(shutdown)
    }
}

async fn either(term: &mut Signal, int: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
