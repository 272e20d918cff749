//! `APP_LEASE_MS`: the length of a job's lease, and every time that follows from it.
//!
//! A worker extends its leases by heartbeats. One that is silent loses its jobs to the next worker when they expire, so
//! all of these times are fractions of the lease: tests can run at a tenth of it with the same proportions.
//!
//! ```text
//! 0        1/6       1/3       1/2                 5/6        1         7/6
//! |---------|---------|---------|---------|---------|---------|---------|
//! heartbeat sent      |         |                   |         expires   also after a restart of Postgres
//!          next one   |         another process may |
//!                     no irreversible step          no side effect
//!                     without a new heartbeat       (self-fence)
//! ```

use std::time::Duration;

use clap::Args;

use super::value::millis;

/// The lease of the cluster's jobs.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Leases")]
pub struct LeaseArgs {
    /// Length of a job's lease in milliseconds: a worker that is silent for this long loses its jobs to the next one.
    /// All other times of leases follow from it. It must be the same in every process of a cluster.
    #[arg(long = "lease-ms", env = "APP_LEASE_MS", default_value = "30000", value_name = "MS",
          value_parser = millis(600, 3_600_000, "30000"))]
    pub lease: Duration,
}

impl LeaseArgs {
    /// Returns the times that follow from the lease.
    pub fn times(self) -> LeaseTimes {
        LeaseTimes { lease: self.lease }
    }
}

/// All times that follow from the lease.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTimes {
    /// How long a lease lasts after the heartbeat that extended it.
    pub lease: Duration,
}

impl LeaseTimes {
    /// Returns how often a worker extends its leases.
    pub fn heartbeat(&self) -> Duration {
        self.lease / 6
    }

    /// Returns how long a worker may go on without a successful heartbeat; after that it starts no side effects. It is
    /// shorter than the lease, so that the worker has stopped before another one starts.
    pub fn self_fence(&self) -> Duration {
        self.lease * 5 / 6
    }

    /// Returns how often a worker checks whether it has to fence itself.
    pub fn fence_check(&self) -> Duration {
        self.lease / 60
    }

    /// Returns how old the last heartbeat may be before an irreversible step.
    pub fn fresh(&self) -> Duration {
        self.lease / 3
    }

    /// Returns how long a loop of the worker may stand still before the process ends. It follows the lease within bounds: a
    /// loop that waits for a statement or for Redis rightly stands still for some 5 s, and one that hangs must not for hours.
    pub fn loop_limit(&self) -> Duration {
        (self.lease * 3 / 2).clamp(Duration::from_secs(15), Duration::from_secs(45))
    }

    /// Returns how long a worker must be silent before another process may take its host name.
    pub fn boot_silence(&self) -> Duration {
        self.lease / 2
    }

    /// Returns how often every process rescues expired leases.
    pub fn rescue_interval(&self) -> Duration {
        self.lease / 6
    }

    /// Returns how long after a start of Postgres no lease is rescued and no host counts as silent, since workers could
    /// not send heartbeats while Postgres was down: a lease and one interval of heartbeats.
    pub fn restart_grace(&self) -> Duration {
        self.lease * 7 / 6
    }

    /// Returns how long a job waits after its worker crashed for the first time; the time doubles with each crash.
    pub fn crash_pause(&self) -> Duration {
        self.lease / 30
    }
}
