//! Images of a registry on this machine: they are refused before any request unless the registry is allowed, and its
//! text is never shown to a tenant.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::docker::docker;
use crate::support::{Client, Cluster};

const SECRET: &str = "secret-of-the-host";

/// Starts a service on loopback that is no registry and whose responses hold a secret. Returns its port and the number
/// of connections.
async fn service_of_the_host() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, connections) = (listener.local_addr().unwrap().port(), Arc::<AtomicUsize>::default());
    let counter = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.ok()?);
                }
                let body = format!("internal: {SECRET}");
                let head = format!("HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
                stream.write_all(format!("{head}\r\n{body}").as_bytes()).await.ok()
            });
        }
    });
    (port, connections)
}

/// Creates an instance, and returns its job and itself when it has failed.
async fn failed(client: &Client, image: &str) -> (Value, Value) {
    let accepted = client.post("/instances", json!({"image": image})).await.expect(202);
    let job = client.wait_for_job(&accepted.job()).await;
    assert_eq!(job["status"], "failed", "{job}");
    (job, client.get(&format!("/instances/{}", accepted.instance())).await.expect(200).body)
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_on_the_host_is_refused_before_any_request() {
    let Some(cluster) = Cluster::docker("registry_on_the_host_is_refused_before_any_request").await else { return };

    let (port, connections) = service_of_the_host().await;
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();

    for host in ["127.0.0.1", "localhost", "LOCALHOST", "127.1", "2130706433"] {
        let (job, instance) = failed(&client, &format!("{host}:{port}/a/b:1")).await;
        assert_eq!(job["error"]["code"], "image_pull_failed", "{job}");
        let detail = instance["status_reason"]["detail"].as_str().unwrap();
        assert!(detail.ends_with("does not resolve to public addresses, and this cluster does not allow it"));
        assert!(!format!("{job}{instance}").contains(SECRET));
    }

    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn allowed_registry_is_used_and_its_text_is_only_logged() {
    let Some(mut cluster) = Cluster::docker("allowed_registry_is_used_and_its_text_is_only_logged").await else {
        return;
    };
    let (port, connections) = service_of_the_host().await;
    cluster.set("APP_REGISTRIES", format!("registry.internal, 127.0.0.1:{port}"));
    let (_api, client) = cluster.serve();
    let worker = cluster.work();

    let (job, instance) = failed(&client, &format!("127.0.0.1:{port}/a/b:1")).await;

    assert_ne!(connections.load(Ordering::SeqCst), 0);
    assert!(["image_not_found", "image_pull_failed"].contains(&job["error"]["code"].as_str().unwrap()), "{job}");
    assert!(!format!("{job}{instance}").contains(SECRET), "{job} {instance}");
    worker.line(SECRET);
}

#[tokio::test(flavor = "multi_thread")]
async fn local_image_runs_whatever_registry_its_name_says() {
    let Some(cluster) = Cluster::docker("local_image_runs_whatever_registry_its_name_says").await else { return };
    let (port, connections) = service_of_the_host().await;
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let image = format!("127.0.0.1:{port}/local:1");
    docker(&cluster, &["tag", &cluster.image, &image]);

    client.create_running(json!({"image": image})).await;

    assert_eq!(connections.load(Ordering::SeqCst), 0);
    docker(&cluster, &["rmi", &image]);
}
