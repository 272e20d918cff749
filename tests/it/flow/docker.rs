//! On real Docker.

use std::{collections::HashSet, time::Duration};

use futures_util::future;
use serde_json::json;

use super::page::page;
use crate::support::{Cluster, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn fifty_instances_at_once_by_ten_clients_run_answer_and_leave_nothing_behind() {
    let Some(cluster) = Cluster::docker("fifty_instances").await else { return };
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let clients = (0..10).map(|_| async {
        let one = |_| client.create_running(json!({"image": cluster.image, "ports": [{"container": 80}]}));
        future::join_all((0..5).map(one)).await
    });
    let instances = future::join_all(clients).await.concat();
    let distinct = |pointer: &str| -> HashSet<String> {
        instances.iter().map(|instance| instance.pointer(pointer).unwrap().to_string()).collect()
    };
    assert_eq!(instances.len(), 50);
    assert_eq!(distinct("/network/address").len(), 50);
    assert_eq!(distinct("/network/mac").len(), 50);
    assert_eq!(distinct("/ports/0/host").len(), 50);
    let in_docker = cluster.in_docker().await;
    assert_eq!(in_docker.iter().filter(|line| line.starts_with("ps ")).count(), 50, "{in_docker:?}");
    for text in future::join_all(instances.iter().map(page)).await {
        assert!(text.contains("It runs"), "{text}");
    }

    let ids = instances.iter().map(|instance| instance["id"].as_str().unwrap());
    future::join_all(ids.map(|id| client.delete_fully(id))).await;
    // The network goes with its last container.
    eventually("nothing of ours in Docker", Duration::from_secs(10), async || {
        cluster.in_docker().await.is_empty().then_some(())
    })
    .await;
    let sql = cluster.sql().await;
    for table in ["addresses", "published_ports"] {
        let left: i64 = sql.query_one(&format!("select count(*) from {table}"), &[]).await.unwrap().get(0);
        assert_eq!(left, 0, "{table}");
    }
    let unfinished = "select count(*) from jobs where status in ('queued', 'running')";
    assert_eq!(sql.query_one(unfinished, &[]).await.unwrap().get::<_, i64>(0), 0);
}
