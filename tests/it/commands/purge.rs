//! `app purge` removes what this cluster has on this host, after a confirmation.

use std::time::Duration;

use serde_json::json;

use super::exited::run_to_exit;
use crate::support::Cluster;

const SECONDS: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn purge_requires_confirmation_and_then_removes_everything() {
    let cluster = Cluster::simulated().await;
    // Without anything to remove there is no question.
    run_to_exit(cluster.command(&["purge"]), SECONDS).expect(0);
    let (_api, client) = cluster.serve();
    let worker = cluster.work();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let instance = client.create_running(json!({"image": cluster.image})).await;
        ids.push(instance["id"].as_str().unwrap().to_owned());
    }
    worker.terminate();

    let mut command = cluster.command(&["purge"]);
    command.env("RUST_LOG", "error");
    let refused = run_to_exit(command, SECONDS).expect(1);
    assert!(refused.line().ends_with("run: app purge --yes"), "{refused:?}");
    assert!(refused.stdout.contains("3 containers with their volumes, 1 networks"), "{refused:?}");
    assert!(!refused.stdout.contains("removed"), "{refused:?}");

    let mut command = cluster.command(&["purge"]);
    command.env("APP_PURGE_YES", "true");
    let purged = run_to_exit(command, SECONDS).expect(0);
    for id in &ids {
        assert!(purged.stdout.contains(&format!("removed container of instance {id}")), "{purged:?}");
    }
    let again = run_to_exit(cluster.command(&["purge", "--yes"]), SECONDS).expect(0);
    assert!(again.stdout.contains("0 containers with their volumes, 0 networks"), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_touches_no_other_cluster() {
    let (ours, theirs) = (Cluster::simulated().await, Cluster::simulated().await);

    let mut theirs_here = theirs;
    // Both on one machine, as two clusters may be.
    theirs_here.set("APP_STATE_DIR", ours.state.path().display());
    let (_api, client) = theirs_here.serve();
    let worker = theirs_here.work();
    let id = client.create_running(json!({"image": theirs_here.image})).await["id"].as_str().unwrap().to_owned();
    worker.terminate();
    let purged = run_to_exit(ours.command(&["purge", "--yes"]), SECONDS).expect(0);

    assert!(purged.stdout.contains("0 containers"), "{purged:?}");

    let purged = run_to_exit(theirs_here.command(&["purge", "--yes"]), SECONDS).expect(0);
    assert!(purged.stdout.contains(&id), "{purged:?}");
}
