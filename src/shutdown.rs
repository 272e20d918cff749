//! Ends the process: on signals, in two stages; or with an exit status of its own when a part of it has failed.
//!
//! ```text
//! running ── first SIGTERM, SIGINT or SIGQUIT ──► requested ── second one ──► forced
//! ```
//!
//! Once `requested`, the process finishes what it has begun and begins nothing new; once `forced`, it ends at once. SIGHUP,
//! SIGUSR1 and SIGUSR2, which end a process by default, are logged and ignored, because there is nothing to reload.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit status of a process that ended itself because a part of it failed: `EX_SOFTWARE` of sysexits.h. The process
/// manager starts another one.
pub const FAILED_PART_STATUS: i32 = 70;

/// Both stages; a clone goes to each part that has to stop.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Cancelled by the first signal: finish what has begun, begin nothing.
    pub requested: CancellationToken,
    /// Cancelled by the second signal: end at once.
    pub forced: CancellationToken,
}

impl Shutdown {
    /// Installs the signal handlers. They run until the process ends.
    ///
    /// # Errors
    /// The I/O error of a handler that cannot be installed.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::default();
        let mut signals = StopSignals::new()?;
        let stages = shutdown.clone();
        tokio::spawn(async move {
            let signal = signals.next().await;
            tracing::info!(signal, "stopping");
            stages.requested.cancel();
            let signal = signals.next().await;
            tracing::warn!(signal, "received a second stop signal; stopping at once");
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

/// The signals that request a stop.
struct StopSignals {
    term: Signal,
    int: Signal,
    quit: Signal,
}

impl StopSignals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// Waits for the next signal and returns its name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
            _ = self.quit.recv() => "SIGQUIT",
        }
    }
}
