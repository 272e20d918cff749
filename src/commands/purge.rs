//! `app purge`: removes the containers, volumes and networks of this cluster from this host.
//!
//! Rows in Postgres stay as they are, so a worker that runs here would start the instances again. An empty network that
//! the runtime refuses to remove is reported and is not an error: no tenant has anything in it.

use std::{
    io::{BufRead, IsTerminal, Write},
    process::ExitCode,
};

use anyhow::bail;

use crate::{
    backend::{Compute, Network, Released},
    cli::PurgeArgs,
    config::environment::Environment,
    startup,
};

/// Removes everything after a confirmation, or at once with `--yes`.
///
/// # Errors
/// An error of the configuration, a missing confirmation, an error of the runtime, or something that is left.
pub async fn run(args: &PurgeArgs, environment: Environment) -> anyhow::Result<ExitCode> {
    let database = args.database.resolve(environment)?;
    let backend = args.backend.resolve(environment)?;
    let (_, cluster) = startup::database(&database).await?;
    let (compute, network_backend) = startup::backends(&backend, cluster).await?;
    let (containers, networks) = (compute.list().await?, network_backend.networks().await?);
    print(&format!(
        "cluster {cluster}: {} containers with their volumes, {} networks",
        containers.len(),
        networks.len()
    ));
    let is_empty = containers.is_empty() && networks.is_empty();
    if !(is_empty || args.yes || confirmed()?) {
        bail!("nothing was removed");
    }
    for container in containers {
        compute.remove(container.instance).await?;
        print(&format!("removed container of instance {}", container.instance));
    }
    let mut stuck = Vec::new();
    for network in networks {
        match network_backend.release_network(network).await? {
            Released::Gone => print(&format!("removed network {network}")),
            Released::InUse => print(&format!("kept network {network}: a container is in it")),
            Released::Stuck(reason) => {
                print(&format!("kept network {network}: {reason}"));
                stuck.push(network);
            }
        }
    }
    let mut left = network_backend.networks().await?;
    left.retain(|network| !stuck.contains(network));
    if !(compute.list().await?.is_empty() && left.is_empty()) {
        bail!("something is left: is a worker still running here? stop it, then run app purge again");
    }
    Ok(ExitCode::SUCCESS)
}

fn confirmed() -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("standard input is no terminal to ask on; to remove all of it, run: app purge --yes");
    }
    eprint!("Remove all of it? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[allow(clippy::print_stdout, reason = "the list of what was removed is the command's output")]
fn print(line: &str) {
    println!("purge: {line}");
}
