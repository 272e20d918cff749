//! The error text of a real registry, passed on by a real engine.

use serde_json::json;

use crate::support::{Cluster, Registry};

#[tokio::test(flavor = "multi_thread")]
async fn registry_text_is_cleaned_and_affects_no_other_tenant() {
    let Some(mut cluster) = Cluster::docker("registry_text_is_cleaned_and_affects_no_other_tenant").await else {
        return;
    };
    let (nul, long) = (Registry::refusing("gone\0for good").await, Registry::refusing(&"x".repeat(3_000_000)).await);
    cluster.set("APP_REGISTRIES", format!("{},{}", nul.address, long.address));
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let other = client.with_key(&cluster.key("other", "admin"));
    let neighbour = other.create_running(json!({"image": cluster.image})).await;

    for registry in [&nul, &long] {
        let answer = client.post("/instances", json!({"image": format!("{}/a/b:1", registry.address)})).await;

        // If the text could not be stored, the job would never finish.
        let job = client.wait_for_job(&answer.expect(202).job()).await;
        let detail = job["error"]["detail"].as_str().unwrap();
        assert_eq!(job["status"], "failed", "{job}");
        assert!(detail.len() <= 2048 && !detail.contains(char::is_control), "{detail:?}");
    }
    let neighbour = other.get(&format!("/instances/{}", neighbour["id"].as_str().unwrap())).await.body;
    assert_eq!(neighbour["status"], "running", "{neighbour}");
}
