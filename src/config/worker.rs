//! `WORK_CONCURRENCY`, `APP_WORK_LISTEN`, `APP_HOST_*` and the worker's times.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use clap::Args;

use super::{
    ConfigError,
    backend::BackendKind,
    lease::{LeaseArgs, LeaseTimes},
    value::{Optional, Value, address, millis, number, seconds, value},
};

const HOST_NAME_EXAMPLE: &str = "host-1";
/// The default of the processor time that instances may request together, per core of the machine: sixteen times the
/// core's own time.
const CPU_MILLIS_PER_CORE: i64 = 16_000;

/// The worker of this host.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Worker")]
pub struct WorkerArgs {
    /// Number of jobs that the worker runs at a time.
    #[arg(long, env = "WORK_CONCURRENCY", default_value = "16", value_name = "N",
          value_parser = number(1_usize, 1024, "16"))]
    concurrency: usize,
    /// Address and port that the worker's health and metrics listen on.
    #[arg(long, env = "APP_WORK_LISTEN", default_value = "127.0.0.1:9091", value_name = "ADDRESS:PORT",
          value_parser = address("127.0.0.1:9091"))]
    work_listen: SocketAddr,
    /// Name of this host, unique in the cluster: one for each Docker engine, and always the same. Empty: the machine's.
    #[arg(long, env = "APP_HOST_NAME", default_value = "", value_name = "NAME", value_parser = host_name().optional())]
    host_name: Optional<String>,
    /// Name or IP address where clients reach the ports published on this host; empty: its name.
    #[arg(long, env = "APP_HOST_ADDRESS", default_value = "", value_name = "ADDRESS",
          value_parser = host_address().optional())]
    host_address: Optional<String>,
    /// Labels that `placement` can ask for, as key=value,key=value.
    #[arg(long, env = "APP_HOST_LABELS", default_value = "", value_name = "LABELS", value_parser = labels())]
    host_labels: BTreeMap<String, String>,
    /// Processor time that the instances of this host may request together, in thousandths of a core; empty: 16000 for
    /// each core. A simulated host has no limit.
    #[arg(long, env = "APP_HOST_CPU_MILLIS", default_value = "", value_name = "N",
          value_parser = number(1, i64::MAX, "64000").accepting("1 or more").optional())]
    host_cpu_millis: Optional<i64>,
    /// Memory that the instances of this host may request together, in MiB; empty: the machine's memory less 10 %. A
    /// simulated host has no limit.
    #[arg(long, env = "APP_HOST_MEMORY_MIB", default_value = "", value_name = "N",
          value_parser = number(1, i64::MAX, "32768").accepting("1 or more").optional())]
    host_memory_mib: Optional<i64>,
    /// How long one attempt of a job may take, in milliseconds.
    #[arg(long = "job-deadline-ms", env = "APP_JOB_DEADLINE_MS", default_value = "600000", value_name = "MS",
          value_parser = millis(1000, 86_400_000, "600000"))]
    job_deadline: Duration,
    /// First pause before a container is restarted by its policy, in milliseconds; it doubles with each restart.
    #[arg(long = "restart-backoff-ms", env = "APP_RESTART_BACKOFF_MS", default_value = "1000", value_name = "MS",
          value_parser = millis(1, 600_000, "1000"))]
    restart_backoff: Duration,
    /// How often all containers are compared with Postgres, besides the runtime's events, in milliseconds.
    #[arg(long = "recheck-ms", env = "APP_RECHECK_MS", default_value = "15000", value_name = "MS",
          value_parser = millis(100, 3_600_000, "15000"))]
    recheck: Duration,
    /// How long a container without an owner is left alone before it is removed, in milliseconds.
    #[arg(long = "orphan-grace-ms", env = "APP_ORPHAN_GRACE_MS", default_value = "600000", value_name = "MS",
          value_parser = millis(0, 86_400_000, "600000"))]
    orphan_grace: Duration,
    /// After SIGTERM, how long running jobs may take before they are given back, in seconds.
    #[arg(long, env = "APP_DRAIN_TIMEOUT", default_value = "60", value_name = "SECONDS",
          value_parser = seconds(0, 3600, "60"))]
    drain_timeout: Duration,
    // Last, because its heading applies to all options after it.
    #[command(flatten)]
    lease: LeaseArgs,
}

/// The worker, checked.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Number of jobs at a time.
    pub slots: usize,
    /// Address of health and metrics.
    pub listen: SocketAddr,
    /// This host.
    pub host: HostConfig,
    /// The lease and what follows from it.
    pub times: LeaseTimes,
    /// How long one attempt of a job may take.
    pub job_deadline: Duration,
    /// First pause before a restart by policy.
    pub restart_backoff: Duration,
    /// How often all containers are compared with Postgres.
    pub recheck: Duration,
    /// How long a container without an owner is left alone.
    pub orphan_grace: Duration,
    /// How long running jobs may take after SIGTERM.
    pub drain_timeout: Duration,
}

/// A host of the cluster.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Its unique name.
    pub name: String,
    /// Where clients reach its published ports; `None`: at its name.
    pub address: Option<String>,
    /// Labels that `placement` can ask for.
    pub labels: BTreeMap<String, String>,
    /// The processor time that its instances may request together, in thousandths of a core; `None`: no limit.
    pub cpu_millis: Option<i64>,
    /// The memory that its instances may request together, in MiB; `None`: no limit.
    pub memory_mib: Option<i64>,
}

impl WorkerArgs {
    /// Returns the worker's configuration, with what is left open filled in from this machine.
    ///
    /// # Errors
    /// `ConfigError` when `APP_HOST_NAME` is empty and the machine's name cannot be used.
    pub fn resolve(&self, compute: BackendKind) -> Result<WorkerConfig, ConfigError> {
        Ok(WorkerConfig {
            slots: self.concurrency,
            listen: self.work_listen,
            host: self.host(compute)?,
            times: self.lease.times(),
            job_deadline: self.job_deadline,
            restart_backoff: self.restart_backoff,
            recheck: self.recheck,
            orphan_grace: self.orphan_grace,
            drain_timeout: self.drain_timeout,
        })
    }

    fn host(&self, compute: BackendKind) -> Result<HostConfig, ConfigError> {
        let name = match &self.host_name {
            Some(name) => name.clone(),
            None => parse_host_name(&machine_name())
                .map_err(|problem| ConfigError::new("APP_HOST_NAME", problem, HOST_NAME_EXAMPLE))?,
        };
        // A simulated host has room for everything.
        let is_simulated = compute == BackendKind::Simulated;
        let limit = |given: Option<i64>, default: fn() -> i64| given.or_else(|| (!is_simulated).then(default));
        Ok(HostConfig {
            cpu_millis: limit(self.host_cpu_millis, machine_cpu_millis),
            memory_mib: limit(self.host_memory_mib, machine_memory_mib),
            address: self.host_address.clone(),
            labels: self.host_labels.clone(),
            name,
        })
    }
}

fn host_name() -> Value<String> {
    value(HOST_NAME_EXAMPLE, "1 to 253 letters, digits, `-`, `.` or `_`", parse_host_name)
}

fn parse_host_name(name: &str) -> Result<String, String> {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if (1..=253).contains(&name.len()) && name.chars().all(is_valid) {
        return Ok(name.to_owned());
    }
    Err("must be 1 to 253 letters, digits, '-', '.' or '_'".to_owned())
}

fn host_address() -> Value<String> {
    value("192.0.2.10", "a host name or an IP address", |text| {
        if text.len() <= 253 && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c)) {
            return Ok(text.to_owned());
        }
        Err(format!("\"{text}\" is neither a host name nor an IP address"))
    })
}

fn labels() -> Value<BTreeMap<String, String>> {
    value("zone=a,disk=ssd", "`KEY=VALUE`, separated by commas, or empty", parse_labels)
}

fn parse_labels(text: &str) -> Result<BTreeMap<String, String>, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair
                .split_once('=')
                .filter(|(key, _)| !key.trim().is_empty())
                .ok_or_else(|| format!("\"{pair}\" is not key=value"))?;
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        })
        .collect()
}

fn machine_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn machine_cpu_millis() -> i64 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    i64::try_from(cores).unwrap_or(1) * CPU_MILLIS_PER_CORE
}

fn machine_memory_mib() -> i64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: i64 = total.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(1 << 20);
    kib / 1024 * 9 / 10
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn labels_are_read_as_they_were_written(labels in btree_map("[a-z]{1,8}", "[a-z=]{0,8}", 0..4)) {
            let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();

            prop_assert_eq!(parse_labels(&pairs.join(" , ")), Ok(labels));
        }

        #[test]
        fn any_text_is_labels_with_keys_or_refused(text in any::<String>()) {
            if let Ok(labels) = parse_labels(&text) {
                prop_assert!(labels.keys().all(|key| !key.is_empty() && text.contains(key.as_str())));
            }
        }

        #[test]
        fn host_name_is_kept_as_it_is_or_refused(text in any::<String>(), like in "[a-zA-Z0-9._ -]{0,12}") {
            for text in [text, like] {
                prop_assert!(parse_host_name(&text).is_err() || parse_host_name(&text).as_ref() == Ok(&text));
            }
        }
    }
}
