//! What runs containers: `COMPUTE_BACKEND`, `NETWORK_BACKEND`, `DOCKER_HOST`, `APP_REGISTRIES`, `APP_STATE_DIR`,
//! `SIMULATED_*`.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::{ConfigError, environment::Environment, setting};

const DEFAULT_DOCKER_HOST: &str = "unix:///var/run/docker.sock";

#[derive(Args, Clone, Debug)]
pub struct BackendArgs {
    /// `docker`, or `simulated` (no containers: for load and fault tests).
    #[arg(long, env = "COMPUTE_BACKEND", default_value = "docker", value_name = "NAME")]
    compute_backend: String,
    /// `docker` (a bridge network per network), or `simulated`.
    #[arg(long, env = "NETWORK_BACKEND", default_value = "docker", value_name = "NAME")]
    network_backend: String,
    /// The Docker engine, unix:///path or tcp://host:port.
    #[arg(long, env = "DOCKER_HOST", default_value = DEFAULT_DOCKER_HOST, value_name = "URL")]
    docker_host: String,
    /// Registries to pull from though they are on no public address, as host or host:port, separated by commas.
    #[arg(long, env = "APP_REGISTRIES", default_value = "", value_name = "REGISTRIES")]
    registries: String,
    /// Where this host keeps its own state (locks, generated development secrets, simulated containers).
    #[arg(long, env = "APP_STATE_DIR", default_value = ".app/state", value_name = "DIR")]
    state_dir: String,
    /// Simulated backend: mean time of one operation, in milliseconds.
    #[arg(long, env = "SIMULATED_LATENCY_MS", default_value = "50", value_name = "MS")]
    simulated_latency_ms: String,
    /// Simulated backend: probability that one operation fails, 0 to 1.
    #[arg(long, env = "SIMULATED_FAIL_RATE", default_value = "0", value_name = "P")]
    simulated_fail_rate: String,
    /// Take simulated backends in production too (a load test of the real stack, say).
    #[arg(long, env = "APP_ALLOW_SIMULATED", default_value = "false", value_name = "BOOL")]
    allow_simulated: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    Docker,
    Simulated,
}

#[derive(Clone, Debug)]
pub struct BackendConfig {
    pub compute: BackendKind,
    pub network: BackendKind,
    pub docker_host: String,
    /// Each `host` or `host:port`.
    pub registries: Vec<String>,
    pub state_dir: PathBuf,
    pub simulated_latency: Duration,
    pub simulated_fail_rate: f64,
}

impl BackendArgs {
    /// # Errors
    /// The first setting that is wrong, or two that do not go together.
    pub fn resolve(&self, environment: Environment) -> Result<BackendConfig, ConfigError> {
        let compute = kind("COMPUTE_BACKEND", &self.compute_backend)?;
        let network = kind("NETWORK_BACKEND", &self.network_backend)?;
        if compute != network {
            return Err(setting("NETWORK_BACKEND", "", "docker")
                .wrong(format_args!("does not go with COMPUTE_BACKEND={}", self.compute_backend)));
        }
        let allowed = setting("APP_ALLOW_SIMULATED", &self.allow_simulated, "true").flag()?;
        if environment == Environment::Production && compute == BackendKind::Simulated && !allowed {
            return Err(setting("COMPUTE_BACKEND", "", "docker").wrong(
                "simulated backends run no containers: refused when APP_ENV=production unless APP_ALLOW_SIMULATED=true",
            ));
        }
        let host = setting("DOCKER_HOST", &self.docker_host, DEFAULT_DOCKER_HOST);
        let docker_host = match self.docker_host.trim() {
            "" => DEFAULT_DOCKER_HOST,
            text => text,
        };
        if !["unix://", "tcp://", "http://"].iter().any(|scheme| docker_host.starts_with(scheme)) {
            return Err(host.wrong(format_args!("\"{docker_host}\" is neither unix:// nor tcp://")));
        }
        Ok(BackendConfig {
            compute,
            network,
            docker_host: docker_host.to_owned(),
            registries: self.registries()?,
            state_dir: setting("APP_STATE_DIR", &self.state_dir, "/var/lib/app").directory()?,
            simulated_latency: setting("SIMULATED_LATENCY_MS", &self.simulated_latency_ms, "50").millis(0, 600_000)?,
            simulated_fail_rate: setting("SIMULATED_FAIL_RATE", &self.simulated_fail_rate, "0.05").between(0.0, 1.0)?,
        })
    }

    fn registries(&self) -> Result<Vec<String>, ConfigError> {
        let names = self.registries.split(',').map(str::trim).filter(|name| !name.is_empty());
        names
            .map(|name| {
                let (host, port) = name.split_once(':').map_or((name, None), |(host, port)| (host, Some(port)));
                let is_host = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c));
                if is_host && port.is_none_or(|port| port.parse::<u16>().is_ok()) {
                    return Ok(name.to_owned());
                }
                Err(setting("APP_REGISTRIES", name, "registry.internal:5000,192.0.2.10")
                    .wrong(format_args!("\"{name}\" is neither HOST nor HOST:PORT")))
            })
            .collect()
    }
}

fn kind(variable: &'static str, text: &str) -> Result<BackendKind, ConfigError> {
    match text {
        "docker" => Ok(BackendKind::Docker),
        "simulated" => Ok(BackendKind::Simulated),
        "ovn" if variable == "NETWORK_BACKEND" => {
            Err(setting(variable, text, "docker").wrong("ovn is not in this version yet"))
        }
        other => Err(setting(variable, other, "docker").wrong(format_args!("\"{other}\" is not a backend"))),
    }
}
