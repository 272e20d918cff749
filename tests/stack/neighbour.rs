//! Two installations on one Docker.

use serde_json::{Value, json};

use crate::{
    eventually,
    stack::{Stack, demo_image, docker, docker_does, first_page, page},
};

/// The label by which a cluster knows what is its own.
fn cluster(instance: &Value) -> String {
    let container = format!("app-{}", instance["id"].as_str().unwrap());
    docker(&["inspect", "-f", "{{index .Config.Labels \"app.cluster\"}}", &container]).trim().to_owned()
}

fn count(cluster: &str) -> usize {
    docker(&["ps", "-aq", "-f", &format!("label=app.cluster={cluster}")]).split_whitespace().count()
}

pub async fn two_stacks_on_one_docker_leave_each_other_alone(first: &Stack) {
    let second = Stack::second();
    let body = json!({"name": "mine", "image": demo_image(), "ports": [{"container": 80}]});
    let ours = first.client.create_running(body.clone()).await;
    let theirs = second.client.create_running(body).await;
    let (our_cluster, their_cluster) = (cluster(&ours), cluster(&theirs));
    assert_ne!(our_cluster, their_cluster);
    for instance in [&ours, &theirs] {
        assert!(first_page(instance).await.contains("It runs."));
    }
    // A key of one is nothing to the other.
    second.client.with_key(&first.client.key).get("/keys/self").await.expect(401);

    // The second sweeps without any grace: its own orphan goes, what is the first's stays.
    let orphan = |cluster: &str| {
        let (id, label) = (uuid::Uuid::now_v7().to_string(), format!("app.cluster={cluster}"));
        let name = format!("app-{id}");
        let labels = [&label, &format!("app.instance={id}"), "app.generation=1", "app.spec=none"];
        let labels = labels.into_iter().flat_map(|label| ["--label", label]).collect::<Vec<_>>();
        docker(&[&["run", "-d", "--name", &name][..], &labels, &[&demo_image()]].concat());
        name
    };
    let (our_orphan, their_orphan) = (orphan(&our_cluster), orphan(&their_cluster));
    eventually(180, "the second's orphan is swept", async || {
        if docker_does(&["inspect", &their_orphan]) { Err(&their_orphan) } else { Ok(()) }
    })
    .await;
    assert!(docker_does(&["inspect", &our_orphan]), "swept by the other");
    docker(&["rm", "-f", &our_orphan]);
    assert!(page(&ours).await.is_ok());

    // The second is taken down and purged: the first does not notice.
    let before = count(&our_cluster);
    second.down();
    assert_eq!((count(&their_cluster), count(&our_cluster)), (0, before));
    assert!(page(&ours).await.is_ok());
    assert!(page(&theirs).await.is_err());
    first.client.delete_fully(ours["id"].as_str().unwrap()).await;
}
