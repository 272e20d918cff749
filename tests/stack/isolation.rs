//! A tenant's container cannot reach any service of the system.

use serde_json::json;

use crate::stack::{Stack, demo_image, docker, docker_succeeds};

/// Whether a TCP connection to the address succeeds.
fn reaches(from: &[&str], address: &str, port: &str) -> bool {
    docker_succeeds(&[from, &["nc", "-w", "2", address, port, "-e", "true"]].concat())
}

pub async fn instance_reaches_no_service_of_the_system(stack: &Stack) {
    let instance = stack.client.create_running(json!({"name": "inside", "image": demo_image()})).await;
    let other = stack.client.create_running(json!({"name": "beside", "image": demo_image()})).await;
    let container = format!("app-{}", instance["id"].as_str().unwrap());
    let inside = ["exec", container.as_str()];
    let image = demo_image();

    // The check itself works: an instance reaches another one of its network.
    assert!(reaches(&inside, other["network"]["address"].as_str().unwrap(), "80"));

    let mut services = Vec::new();
    for (service, network, port) in [
        ("postgres", "back", "5432"),
        ("replica", "back", "5432"),
        ("redis", "back", "6379"),
        ("prometheus", "back", "9090"),
        ("worker", "back", "9091"),
        ("worker", "front", "9091"),
        ("api", "back", "8080"),
        ("api", "front", "8080"),
        ("nginx", "front", "8080"),
    ] {
        for one in stack.containers(service, false) {
            services.push((service, network, stack.address(&one, network), port));
        }
    }
    assert!(services.len() >= 12, "{services:?}");
    for (service, network, address, port) in &services {
        let network = format!("{}_{network}", stack.project);
        let allowed = ["run", "--rm", "--network", network.as_str(), image.as_str()];
        assert!(reaches(&allowed, address, port), "{service} at {address}:{port} is reachable from its own network");
        assert!(!reaches(&inside, address, port), "{service} at {address}:{port} is reachable from an instance");
    }

    // None of these ports is open on the host's address in the instance's network.
    let route = docker(&[&inside[..], &["ip", "route"]].concat());
    let gateway = route.split_whitespace().skip_while(|word| *word != "via").nth(1).unwrap().to_owned();
    for port in ["5432", "6379", "9090", "9091"] {
        assert!(!reaches(&inside, &gateway, port), "port {port} of the host is reachable");
    }
    for name in ["postgres", "redis", "api", "replica", "prometheus"] {
        assert!(!docker_succeeds(&[&inside[..], &["nslookup", name]].concat()), "{name} resolves");
    }
    for instance in [instance, other] {
        stack.client.delete_fully(instance["id"].as_str().unwrap()).await;
    }
}
