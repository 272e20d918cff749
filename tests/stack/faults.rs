//! Parts that go and come under load.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::json;

use crate::{
    eventually,
    load::Load,
    stack::{Stack, demo_image, docker, first_page, inspect, page},
};

pub async fn five_replicas_and_three_again(stack: &Stack) {
    let nginx = inspect(&stack.container("nginx"))["State"]["StartedAt"].clone();
    let load = Load::start(stack).await;
    stack.compose(&["up", "-d", "--scale", "api=5"]);
    stack.settled(5).await;
    load.flows().await;
    let newest = stack.containers("api", false).into_iter().map(|id| stack.address(&id, "front") + ":8080");
    let log = stack.nginx_log();
    for address in newest {
        let answered = log.iter().filter(|line| line["upstream"] == address.as_str()).count();
        assert!(answered > 10, "{address} answered {answered}");
    }
    stack.compose(&["up", "-d", "--scale", "api=3"]);
    stack.settled(3).await;
    load.end("five replicas and three again").await;
    assert_eq!(stack.containers("api", false).len(), 3);
    assert_eq!(inspect(&stack.container("nginx"))["State"]["StartedAt"], nginx, "nginx was restarted");
}

/// Rows that the replica has read for the program.
fn replica_reads(stack: &Stack) -> u64 {
    stack.sql("replica", "select xact_commit from pg_stat_database where datname = 'app'").parse().unwrap()
}

pub async fn the_read_replica_serves_lists_and_may_go_and_come(stack: &Stack) {
    assert_eq!(stack.sql("replica", "select pg_is_in_recovery()"), "t");
    // A tenant that has not written: its lists may come from the replica.
    let reader = stack.client.with_key(&stack.key("reader"));
    // Not at once: while Redis may have missed a write, all lists are the primary's; and statistics come late.
    let lists = async || {
        eventually(60, "the replica's own statistics", async || {
            let before = replica_reads(stack);
            for _ in 0..60 {
                reader.get("/instances").await.expect(200);
            }
            let read = replica_reads(stack).saturating_sub(before);
            if read >= 50 { Ok(()) } else { Err(read) }
        })
        .await;
    };
    lists().await;
    let load = Load::start(stack).await;
    stack.compose(&["stop", "replica"]);
    load.flows().await;
    stack.compose(&["start", "replica"]);
    stack.settled(3).await;
    assert_eq!(load.end("the read replica stopped and started").await, 0, "asked twice");
    lists().await;
}

pub async fn a_read_replica_that_was_away_for_too_long_is_copied_anew(stack: &Stack) {
    stack.compose(&["stop", "replica"]);
    // As when the primary's patience (max_slot_wal_keep_size) is at its end.
    stack.sql("postgres", "select pg_drop_replication_slot('replica')");
    stack.compose(&["start", "replica"]);
    stack.settled(3).await;
    let copied = || stack.compose(&["logs", "--no-color", "replica"]).matches("copying the primary again").count();
    assert_eq!(copied(), 1);
    // While it runs, it cannot mend itself; but it says so.
    for statement in [
        "alter role replica nologin",
        "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots",
        "select pg_drop_replication_slot('replica')",
        "alter role replica login",
    ] {
        stack.sql("postgres", statement);
    }
    eventually(60, "unhealthy", async || {
        let health = inspect(&stack.container("replica"))["State"]["Health"]["Status"].clone();
        if health == "unhealthy" { Ok(()) } else { Err(health) }
    })
    .await;
    stack.compose(&["restart", "replica"]);
    stack.settled(3).await;
    assert_eq!(copied(), 2);
    assert_eq!(stack.sql("replica", "select pg_is_in_recovery()"), "t");
    eventually(60, "it streams", async || {
        let state = stack.sql("postgres", "select state from pg_stat_replication");
        if state == "streaming" { Ok(()) } else { Err(state) }
    })
    .await;
}

pub async fn redis_restarts(stack: &Stack) {
    let load = Load::start(stack).await;
    stack.compose(&["restart", "redis"]);
    stack.settled(3).await;
    assert_eq!(load.end("Redis restarted").await, 0, "asked twice");
}

pub async fn nginx_reloads(stack: &Stack) {
    let load = Load::start(stack).await;
    let nginx = stack.container("nginx");
    for _ in 0..3 {
        let workers =
            || docker(&["exec", &nginx, "cat", "/tmp/nginx.pid"]) + &docker(&["top", &nginx, "-o", "pid,args"]);
        let before = workers();
        docker(&["kill", "-s", "HUP", &nginx]);
        eventually(
            60,
            "other worker processes",
            async || if workers() == before { Err(before.clone()) } else { Ok(()) },
        )
        .await;
        load.flows().await;
    }
    load.end("nginx reloaded three times").await;
}

/// As the kernel would: not through Docker, which would not start it again.
pub async fn a_replica_is_killed(stack: &Stack) {
    let load = Load::start(stack).await;
    for _ in 0..2 {
        let victim = stack.containers("api", false).remove(0);
        let restarts = inspect(&victim)["RestartCount"].as_u64().unwrap();
        let pid = inspect(&victim)["State"]["Pid"].to_string();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success(), "kill -9 needs root");
        eventually(60, "Docker starts it again", async || {
            let now = inspect(&victim)["RestartCount"].as_u64().unwrap();
            if now > restarts { Ok(()) } else { Err(now) }
        })
        .await;
        stack.settled(3).await;
        load.flows().await;
    }
    load.end("a replica killed with kill -9, twice").await;
}

pub async fn the_worker_restarts_and_instances_do_not_notice(stack: &Stack) {
    let body = json!({"name": "steady", "image": demo_image(), "ports": [{"container": 80}]});
    let instance = stack.client.create_running(body).await;
    let container = format!("app-{}", instance["id"].as_str().unwrap());
    let before = inspect(&container)["State"]["StartedAt"].clone();
    first_page(&instance).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, watched) = (stop.clone(), instance.clone());
    let visitor = tokio::spawn(async move {
        let mut pages = 0;
        while !stopped.load(Relaxed) {
            page(&watched).await.unwrap_or_else(|error| panic!("after {pages} pages: {error:?}"));
            pages += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        pages
    });
    let load = Load::start(stack).await;
    stack.compose(&["restart", "worker"]);
    stack.settled(3).await;
    // And without a goodbye.
    let pid = inspect(&stack.container("worker"))["State"]["Pid"].to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success(), "kill -9 needs root");
    eventually(60, "the worker is back", async || {
        let now = inspect(&stack.container("worker"))["State"]["Pid"].to_string();
        if now != pid && now != "0" { Ok(()) } else { Err(now) }
    })
    .await;
    stack.settled(3).await;
    load.end("the worker restarted, and killed").await;
    stop.store(true, Relaxed);
    assert!(visitor.await.unwrap() > 50);
    assert_eq!(inspect(&container)["State"]["StartedAt"], before);
    let id = instance["id"].as_str().unwrap();
    assert_eq!(stack.client.get(&format!("/instances/{id}")).await.expect(200).body["status"], "running");
    stack.client.delete_fully(id).await;
}
