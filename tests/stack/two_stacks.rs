//! Two clusters on one Docker engine do not affect each other.

use serde_json::{Value, json};

use crate::{
    poll_until,
    stack::{Stack, demo_image, docker, docker_succeeds, first_page, page},
};

/// The id of the cluster that the container of an instance belongs to.
fn cluster(instance: &Value) -> String {
    let container = format!("app-{}", instance["id"].as_str().unwrap());
    docker(&["inspect", "-f", "{{index .Config.Labels \"app.cluster\"}}", &container]).trim().to_owned()
}

fn count(cluster: &str) -> usize {
    docker(&["ps", "-aq", "-f", &format!("label=app.cluster={cluster}")]).split_whitespace().count()
}

pub async fn clusters_on_one_docker_are_independent(first: &Stack) {
    let second = Stack::second();
    let body = json!({"name": "mine", "image": demo_image(), "ports": [{"container": 80}]});
    let ours = first.client.create_running(body.clone()).await;
    let theirs = second.client.create_running(body).await;
    let (our_cluster, their_cluster) = (cluster(&ours), cluster(&theirs));
    assert_ne!(our_cluster, their_cluster);
    for instance in [&ours, &theirs] {
        assert!(first_page(instance).await.contains("It runs."));
    }
    // A key of one cluster is not valid in the other.
    second.client.with_key(&first.client.key).get("/keys/self").await.expect(401);

    // The second has no grace period for orphans: it removes its own orphan and keeps that of the first.
    let orphan = |cluster: &str| {
        let (id, label) = (uuid::Uuid::now_v7().to_string(), format!("app.cluster={cluster}"));
        let name = format!("app-{id}");
        let labels = [&label, &format!("app.instance={id}"), "app.generation=1", "app.spec=none"];
        let labels = labels.into_iter().flat_map(|label| ["--label", label]).collect::<Vec<_>>();
        docker(&[&["run", "-d", "--name", &name][..], &labels, &[&demo_image()]].concat());
        name
    };
    let (our_orphan, their_orphan) = (orphan(&our_cluster), orphan(&their_cluster));
    poll_until(180, "the orphan of the second is removed", async || {
        if docker_succeeds(&["inspect", &their_orphan]) { Err(&their_orphan) } else { Ok(()) }
    })
    .await;
    assert!(docker_succeeds(&["inspect", &our_orphan]), "removed by the other cluster");
    docker(&["rm", "-f", &our_orphan]);
    assert!(page(&ours).await.is_ok());

    // The second is purged and removed: the containers of the first keep running.
    let before = count(&our_cluster);
    second.down();
    assert_eq!((count(&their_cluster), count(&our_cluster)), (0, before));
    assert!(page(&ours).await.is_ok());
    assert!(page(&theirs).await.is_err());
    first.client.delete_fully(ours["id"].as_str().unwrap()).await;
}
