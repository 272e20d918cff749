//! `COMPUTE_BACKEND`, `NETWORK_BACKEND`, `DOCKER_HOST`, `APP_REGISTRIES`, `SIMULATED_*`: what runs the containers.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::{
    ConfigError,
    environment::Environment,
    state_dir::StateDirArgs,
    value::{List, Value, flag, millis, number, value},
};

const DOCKER_HOST_DEFAULT: &str = "unix:///var/run/docker.sock";
const BACKEND_EXAMPLE: &str = "docker";

/// What runs the containers of this host.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Containers")]
pub struct BackendArgs {
    /// What runs instances: `docker`, or `simulated`, which starts no containers and serves load and fault tests.
    #[arg(long, env = "COMPUTE_BACKEND", default_value = "docker", value_name = "NAME", value_parser = compute_kind())]
    compute_backend: BackendKind,
    /// What connects instances: `docker` (one bridge network per network), or `simulated`.
    #[arg(long, env = "NETWORK_BACKEND", default_value = "docker", value_name = "NAME", value_parser = network_kind())]
    network_backend: BackendKind,
    /// Address of the Docker engine, version 20.10 or later: unix:///path or tcp://host:port.
    #[arg(long, env = "DOCKER_HOST", default_value = DOCKER_HOST_DEFAULT, value_name = "URL",
          value_parser = docker_host())]
    docker_host: String,
    /// Registries on private addresses that images may be pulled from, as image names write them: host or host:port,
    /// separated by commas.
    #[arg(long, env = "APP_REGISTRIES", default_value = "", value_name = "REGISTRIES", value_parser = registries())]
    registries: List<String>,
    /// Simulated backend: mean duration of one operation, in milliseconds.
    #[arg(long = "simulated-latency-ms", env = "SIMULATED_LATENCY_MS", default_value = "50", value_name = "MS",
          value_parser = millis(0, 600_000, "50"))]
    simulated_latency: Duration,
    /// Simulated backend: probability that one operation fails.
    #[arg(long, env = "SIMULATED_FAIL_RATE", default_value = "0", value_name = "P",
          value_parser = number(0.0, 1.0, "0.05"))]
    simulated_fail_rate: f64,
    /// Accepts simulated backends in production, for example for a load test of the real stack.
    #[arg(long, env = "APP_ALLOW_SIMULATED", default_value = "false", value_name = "BOOL",
          action = clap::ArgAction::Set, value_parser = flag("true"))]
    allow_simulated: bool,
    // Last, because its heading applies to all options after it.
    #[command(flatten)]
    state: StateDirArgs,
}

/// A kind of backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// Containers and bridge networks of a Docker engine.
    Docker,
    /// Files in the state directory stand for containers.
    Simulated,
}

/// The backends, checked.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// The backend that runs instances.
    pub compute: BackendKind,
    /// The backend that connects instances.
    pub network: BackendKind,
    /// The URL of the Docker engine.
    pub docker_host: String,
    /// Registries on private addresses, each `host` or `host:port`.
    pub registries: Vec<String>,
    /// The directory for locks and the records of simulated containers.
    pub state_dir: PathBuf,
    /// Mean duration of a simulated operation.
    pub simulated_latency: Duration,
    /// Probability that a simulated operation fails, 0 to 1.
    pub simulated_fail_rate: f64,
}

impl BackendArgs {
    /// Returns the backends.
    ///
    /// # Errors
    /// `ConfigError` when the two backends do not go together, or when production is given simulated ones.
    pub fn resolve(&self, environment: Environment) -> Result<BackendConfig, ConfigError> {
        let (compute, network) = (self.compute_backend, self.network_backend);
        if compute != network {
            let problem = format!("does not go with COMPUTE_BACKEND={}", compute.as_str());
            return Err(ConfigError::new("NETWORK_BACKEND", problem, compute.as_str()));
        }
        if environment == Environment::Production && compute == BackendKind::Simulated && !self.allow_simulated {
            let problem =
                "simulated backends run no containers: refused when APP_ENV=production unless APP_ALLOW_SIMULATED=true";
            return Err(ConfigError::new("COMPUTE_BACKEND", problem, BACKEND_EXAMPLE));
        }
        Ok(BackendConfig {
            compute,
            network,
            docker_host: self.docker_host.clone(),
            registries: self.registries.clone(),
            state_dir: self.state.state_dir.clone(),
            simulated_latency: self.simulated_latency,
            simulated_fail_rate: self.simulated_fail_rate,
        })
    }
}

impl BackendKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Simulated => "simulated",
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let kinds = [Self::Docker, Self::Simulated];
        kinds.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| format!("\"{text}\" is not a backend"))
    }
}

fn compute_kind() -> Value<BackendKind> {
    value(BACKEND_EXAMPLE, "`docker` or `simulated`", BackendKind::parse)
}

fn network_kind() -> Value<BackendKind> {
    value(BACKEND_EXAMPLE, "`docker` or `simulated`, the same as `COMPUTE_BACKEND`", |text| match text {
        "ovn" => Err("ovn is not in this version yet".to_owned()),
        text => BackendKind::parse(text),
    })
}

fn docker_host() -> Value<String> {
    let parser = value(DOCKER_HOST_DEFAULT, "`unix:///PATH` or `tcp://HOST:PORT`", |text| {
        let text = text.trim();
        if ["unix://", "tcp://", "http://"].iter().any(|scheme| text.starts_with(scheme)) {
            return Ok(text.to_owned());
        }
        Err(format!("\"{text}\" is neither unix:// nor tcp://"))
    });
    parser.or_default(DOCKER_HOST_DEFAULT)
}

fn registries() -> Value<List<String>> {
    let text = "`HOST` or `HOST:PORT`, separated by commas, or empty";
    value("registry.internal:5000,192.0.2.10", text, parse_registries)
}

fn parse_registries(text: &str) -> Result<Vec<String>, String> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let (host, port) = name.split_once(':').map_or((name, None), |(host, port)| (host, Some(port)));
            let is_host = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c));
            if is_host && port.is_none_or(|port| port.parse::<u16>().is_ok()) {
                return Ok(name.to_owned());
            }
            Err(format!("\"{name}\" is neither HOST nor HOST:PORT"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn registries_are_read_as_they_were_written(names in vec("[a-z0-9.-]{1,12}(:[1-9][0-9]{0,3})?", 0..4)) {
            prop_assert_eq!(parse_registries(&names.join(", ")), Ok(names));
        }

        #[test]
        fn any_text_is_registries_or_refused(text in any::<String>(), like in "[a-z:., 0-9]{0,20}") {
            for text in [text, like] {
                if let Ok(names) = parse_registries(&text) {
                    let is_allowed = |c: char| c.is_ascii_alphanumeric() || ".:+-".contains(c);
                    prop_assert!(names.iter().all(|name| name.chars().all(is_allowed)), "{:?}", names);
                }
            }
        }
    }
}
