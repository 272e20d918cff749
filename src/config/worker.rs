//! The worker: `WORK_CONCURRENCY`, `APP_WORK_LISTEN`, `APP_HOST_*`, and the times of leases and checks.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use clap::Args;

use super::{ConfigError, backend::BackendKind, setting};

#[derive(Args, Clone, Debug)]
pub struct WorkerArgs {
    /// Jobs at a time.
    #[arg(long, env = "WORK_CONCURRENCY", default_value = "16", value_name = "N")]
    concurrency: String,
    /// Where the worker's health and metrics listen.
    #[arg(long, env = "APP_WORK_LISTEN", default_value = "127.0.0.1:9091", value_name = "ADDRESS:PORT")]
    work_listen: String,
    /// This host's name in the cluster, unique; default: the machine's.
    #[arg(long, env = "APP_HOST_NAME", default_value = "", value_name = "NAME")]
    host_name: String,
    /// Where clients reach the ports published on this host; empty: its name.
    #[arg(long, env = "APP_HOST_ADDRESS", default_value = "", value_name = "ADDRESS")]
    host_address: String,
    /// Labels that `placement` can ask for, as key=value,key=value.
    #[arg(long, env = "APP_HOST_LABELS", default_value = "", value_name = "LABELS")]
    host_labels: String,
    /// What instances here may ask for together, in thousandths of a core; default: cores x 1000 x 16.
    #[arg(long, env = "APP_HOST_CPU_MILLIS", default_value = "", value_name = "N")]
    host_cpu_millis: String,
    /// What instances here may ask for together, in MiB; default: the machine's memory less 10 %.
    #[arg(long, env = "APP_HOST_MEMORY_MIB", default_value = "", value_name = "N")]
    host_memory_mib: String,
    /// A job's lease, in milliseconds: how long a worker may be silent before its jobs go to the next.
    #[arg(long, env = "APP_LEASE_MS", default_value = "30000", value_name = "MS")]
    lease_ms: String,
    /// How long one attempt of a job may take, in milliseconds.
    #[arg(long, env = "APP_JOB_DEADLINE_MS", default_value = "600000", value_name = "MS")]
    job_deadline_ms: String,
    /// First pause before a container is restarted by its policy, in milliseconds; doubles each time.
    #[arg(long, env = "APP_RESTART_BACKOFF_MS", default_value = "1000", value_name = "MS")]
    restart_backoff_ms: String,
    /// How often all containers are compared with Postgres, in milliseconds.
    #[arg(long, env = "APP_RECHECK_MS", default_value = "15000", value_name = "MS")]
    recheck_ms: String,
    /// How long a container without an owner is left alone, in milliseconds.
    #[arg(long, env = "APP_ORPHAN_GRACE_MS", default_value = "600000", value_name = "MS")]
    orphan_grace_ms: String,
    /// After SIGTERM, how long running jobs may take before they are given back, in seconds.
    #[arg(long, env = "APP_DRAIN_TIMEOUT", default_value = "60", value_name = "SECONDS")]
    drain_timeout: String,
}

#[derive(Clone, Debug)]
pub struct WorkerConfig {
    pub slots: usize,
    pub listen: SocketAddr,
    pub host: HostConfig,
    pub times: LeaseTimes,
    pub restart_backoff: Duration,
    pub recheck: Duration,
    pub orphan_grace: Duration,
    pub drain_timeout: Duration,
}

#[derive(Clone, Debug)]
pub struct HostConfig {
    pub name: String,
    pub address: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// `None`: no limit.
    pub cpu_millis: Option<i64>,
    pub memory_mib: Option<i64>,
}

/// All follow from the lease, so that tests can run at a tenth of it.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTimes {
    pub lease: Duration,
    pub job_deadline: Duration,
}

impl LeaseTimes {
    /// How often leases are extended: six times in their length.
    pub fn heartbeat(&self) -> Duration {
        self.lease / 6
    }

    /// After this long without a heartbeat that succeeded, the worker starts no side effects: earlier than the lease.
    pub fn self_fence(&self) -> Duration {
        self.lease * 5 / 6
    }

    /// Before an irreversible step, the last heartbeat must be younger than this.
    pub fn fresh(&self) -> Duration {
        self.lease / 3
    }

    /// A loop of the worker that stands still for this long ends the process. It follows the lease within bounds: a loop that
    /// waits for a statement or for Redis is rightly still for some 5 s, and one that hangs must not do so for hours.
    pub fn loop_limit(&self) -> Duration {
        (self.lease * 3 / 2).clamp(Duration::from_secs(15), Duration::from_secs(45))
    }

    /// A worker silent for this long may be replaced by another process of the same host name.
    pub fn boot_silence(&self) -> Duration {
        self.lease / 2
    }
}

impl WorkerArgs {
    /// # Errors
    /// The first setting that is wrong.
    pub fn resolve(&self, compute: BackendKind) -> Result<WorkerConfig, ConfigError> {
        Ok(WorkerConfig {
            slots: setting("WORK_CONCURRENCY", &self.concurrency, "16").between(1, 1024)?,
            listen: setting("APP_WORK_LISTEN", &self.work_listen, "127.0.0.1:9091").listen()?,
            host: self.host(compute)?,
            times: LeaseTimes {
                lease: setting("APP_LEASE_MS", &self.lease_ms, "30000").millis(600, 3_600_000)?,
                job_deadline: setting("APP_JOB_DEADLINE_MS", &self.job_deadline_ms, "600000")
                    .millis(1000, 86_400_000)?,
            },
            restart_backoff: setting("APP_RESTART_BACKOFF_MS", &self.restart_backoff_ms, "1000").millis(1, 600_000)?,
            recheck: setting("APP_RECHECK_MS", &self.recheck_ms, "15000").millis(100, 3_600_000)?,
            orphan_grace: setting("APP_ORPHAN_GRACE_MS", &self.orphan_grace_ms, "600000").millis(0, 86_400_000)?,
            drain_timeout: Duration::from_secs(
                setting("APP_DRAIN_TIMEOUT", &self.drain_timeout, "60").between(0, 3600)?,
            ),
        })
    }

    fn host(&self, compute: BackendKind) -> Result<HostConfig, ConfigError> {
        let name = match self.host_name.trim() {
            "" => machine_name(),
            name => name.to_owned(),
        };
        let named = setting("APP_HOST_NAME", &name, "host-1");
        if name.is_empty() || name.len() > 253 || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
        {
            return Err(named.wrong("must be 1 to 253 letters, digits, '-', '.' or '_'"));
        }
        let simulated = compute == BackendKind::Simulated;
        let limit = |variable, text: &str, example, default: fn() -> i64| match text.trim() {
            // A simulated host has room for all.
            "" if simulated => Ok(None),
            "" => Ok(Some(default())),
            text => setting(variable, text, example).between(1, i64::MAX).map(Some),
        };
        Ok(HostConfig {
            cpu_millis: limit("APP_HOST_CPU_MILLIS", &self.host_cpu_millis, "64000", machine_cpu_millis)?,
            memory_mib: limit("APP_HOST_MEMORY_MIB", &self.host_memory_mib, "32768", machine_memory_mib)?,
            address: self.address()?,
            labels: self.labels()?,
            name,
        })
    }

    fn address(&self) -> Result<Option<String>, ConfigError> {
        match self.host_address.trim() {
            "" => Ok(None),
            address
                if address.len() <= 253 && address.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c)) =>
            {
                Ok(Some(address.to_owned()))
            }
            other => Err(setting("APP_HOST_ADDRESS", other, "192.0.2.10")
                .wrong(format_args!("\"{other}\" is neither a host's name nor an IP address"))),
        }
    }

    fn labels(&self) -> Result<BTreeMap<String, String>, ConfigError> {
        let pairs = self.host_labels.split(',').map(str::trim).filter(|pair| !pair.is_empty());
        pairs
            .map(|pair| {
                let (key, value) = pair.split_once('=').filter(|(key, _)| !key.trim().is_empty()).ok_or_else(|| {
                    setting("APP_HOST_LABELS", pair, "zone=a,disk=ssd")
                        .wrong(format_args!("\"{pair}\" is not key=value"))
                })?;
                Ok((key.trim().to_owned(), value.trim().to_owned()))
            })
            .collect()
    }
}

fn machine_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn machine_cpu_millis() -> i64 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    i64::try_from(cores).unwrap_or(1) * 1000 * 16
}

fn machine_memory_mib() -> i64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: i64 = total.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(1 << 20);
    kib / 1024 * 9 / 10
}
