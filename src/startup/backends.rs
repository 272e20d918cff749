//! Connects to the backend that runs containers: the Docker engine, or the simulated machine of the state directory.

use crate::{
    backend::{
        any::{AnyCompute, AnyNetwork},
        docker::DockerCompute,
        simulated::{SimulatedCompute, Simulation},
    },
    config::{
        ConfigError,
        backend::{BackendConfig, BackendKind},
    },
    core::id::ClusterId,
};

/// Returns the compute and the network backend of a cluster. The two share their locks, so a process has one pair.
///
/// # Errors
/// When the Docker engine does not answer, or the state directory cannot be used.
pub async fn backends(config: &BackendConfig, cluster: ClusterId) -> anyhow::Result<(AnyCompute, AnyNetwork)> {
    match config.compute {
        BackendKind::Docker => docker(config, cluster).await,
        BackendKind::Simulated => simulated(config, cluster),
    }
}

async fn docker(config: &BackendConfig, cluster: ClusterId) -> anyhow::Result<(AnyCompute, AnyNetwork)> {
    let unusable = |error| {
        let problem = format!("cannot use the Docker engine at {} ({error})", config.docker_host);
        ConfigError::new("DOCKER_HOST", problem, "unix:///var/run/docker.sock")
    };
    let compute = DockerCompute::connect(Some(&config.docker_host), cluster).map_err(unusable)?;
    let compute = compute.allowing(&config.registries);
    let version = compute.version().await.map_err(unusable)?;
    tracing::info!(version, "docker answers");
    let network = compute.network();
    Ok((AnyCompute::Docker(compute), AnyNetwork::Docker(network)))
}

fn simulated(config: &BackendConfig, cluster: ClusterId) -> anyhow::Result<(AnyCompute, AnyNetwork)> {
    let simulation = Simulation {
        state_dir: config.state_dir.clone(),
        latency: config.simulated_latency,
        fail_rate: config.simulated_fail_rate,
        seed: getrandom::u64().unwrap_or_default(),
    };
    let compute = SimulatedCompute::open(&simulation, cluster).map_err(|error| {
        let problem = format!("{} cannot be used ({error})", config.state_dir.display());
        ConfigError::new("APP_STATE_DIR", problem, "/var/lib/app")
    })?;
    tracing::warn!("simulated backend: no containers run");
    let network = compute.network();
    Ok((AnyCompute::Simulated(compute), AnyNetwork::Simulated(network)))
}
