//! `app purge`: removes all that this cluster has on this host. Rows stay; a running worker would notice. An empty network
//! that the runtime does not let go is told, and no error: nobody can do more about it, and no tenant has anything in it.

use std::{
    io::{BufRead, IsTerminal, Write},
    process::ExitCode,
};

use anyhow::bail;

use crate::startup;
use crate::{
    backend::{Compute, Network, Released},
    cli::PurgeArgs,
    config::{environment::Environment, setting},
};

pub async fn run(args: &PurgeArgs, environment: Environment) -> anyhow::Result<ExitCode> {
    let database = args.database.resolve(environment)?;
    let backend = args.backend.resolve(environment)?;
    let yes = setting("APP_PURGE_YES", &args.yes, "true").flag()?;
    let (_, cluster) = startup::database(&database).await?;
    let (compute, network_backend) = startup::backends(&backend, cluster).await?;
    let (containers, networks) = (compute.list().await?, network_backend.networks().await?);
    say(&format!("cluster {cluster}: {} containers with their volumes, {} networks", containers.len(), networks.len()));
    let nothing = containers.is_empty() && networks.is_empty();
    if !(nothing || yes || confirmed()?) {
        bail!("nothing was removed");
    }
    for container in containers {
        compute.remove(container.instance).await?;
        say(&format!("removed container of instance {}", container.instance));
    }
    let mut stuck = Vec::new();
    for network in networks {
        match network_backend.release_network(network).await? {
            Released::Gone => say(&format!("removed network {network}")),
            Released::InUse => say(&format!("kept network {network}: a container is in it")),
            Released::Stuck(why) => {
                say(&format!("kept network {network}: {why}"));
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

#[allow(clippy::print_stdout, reason = "what was removed is this command's result")]
fn say(line: &str) {
    println!("purge: {line}");
}
