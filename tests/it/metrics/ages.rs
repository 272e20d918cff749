//! Gauges that show an age are computed by each scrape: one that a loop wrote would stand still while the loop does, and
//! its alarm would never fire.

use std::time::Duration;

use crate::support::{Client, Cluster, Postgres, poll_until};

const AGES: [&str; 3] = ["identity_feed_age_seconds", "identity_outbox_oldest_seconds", "queue_oldest_due_seconds"];

async fn ages(client: &Client) -> [f64; 3] {
    let text = reqwest::get(format!("{}/metrics", client.base)).await.unwrap().text().await.unwrap();
    AGES.map(|name| {
        let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in:\n{text}")).rsplit(' ').next().unwrap().parse().unwrap()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn ages_grow_with_each_scrape_while_loops_wait_for_postgres() {
    let server = Postgres::primary().await;
    let cluster = Cluster::on(&server).await;
    let (_api, client) = cluster.serve();

    server.hang();
    let before = poll_until("all loops wait for Postgres", Duration::from_secs(60), async || {
        let ages = ages(&client).await;
        ages.iter().all(|age| *age > 2.0).then_some(ages)
    })
    .await;
    let after = ages(&client).await;
    server.resume();

    for ((name, before), after) in AGES.iter().zip(before).zip(after) {
        assert!(after > before, "{name} stands still at {before} s");
    }
}
