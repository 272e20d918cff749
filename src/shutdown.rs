//! Signals: the first SIGTERM, SIGINT or SIGQUIT asks the process to stop, the second insists. SIGHUP, SIGUSR1 and SIGUSR2,
//! which would end it at once by default, are logged and ignored: there is nothing to reload.

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
    /// Handles signals from now on.
    ///
    /// # Errors
    /// When no handler can be installed.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::default();
        let mut stop = Stop::listen()?;
        let stages = shutdown.clone();
        tokio::spawn(async move {
            let signal = stop.next().await;
            tracing::info!(signal, "stopping");
            stages.requested.cancel();
            let signal = stop.next().await;
            tracing::warn!(signal, "stopping at once");
            stages.forced.cancel();
        });
        for (name, kind) in [
            ("SIGHUP", SignalKind::hangup()),
            ("SIGUSR1", SignalKind::user_defined1()),
            ("SIGUSR2", SignalKind::user_defined2()),
        ] {
            let mut signals = signal(kind)?;
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    tracing::info!(signal = name, "ignoring a signal");
                }
            });
        }
        Ok(shutdown)
    }
}

/// The signals that ask for a stop.
struct Stop {
    term: Signal,
    int: Signal,
    quit: Signal,
}

impl Stop {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
            _ = self.quit.recv() => "SIGQUIT",
        }
    }
}
