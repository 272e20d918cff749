//! Services are stopped, restarted, scaled and killed while clients send requests.

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
    load::Load,
    poll_until,
    stack::{Stack, demo_image, docker, first_page, inspect, page},
};

pub async fn scaling_up_and_down_loses_no_request(stack: &Stack) {
    let nginx = inspect(&stack.container("nginx"))["State"]["StartedAt"].clone();
    let load = Load::start(stack).await;
    stack.compose(&["up", "-d", "--scale", "api=5"]);
    stack.wait_until_healthy(5).await;
    load.wait_for_progress().await;
    let newest = stack.containers("api", false).into_iter().map(|id| stack.address(&id, "front") + ":8080");
    let log = stack.nginx_log();
    for address in newest {
        let answered = log.iter().filter(|line| line["upstream"] == address.as_str()).count();
        assert!(answered > 10, "{address} answered {answered}");
    }
    stack.compose(&["up", "-d", "--scale", "api=3"]);
    stack.wait_until_healthy(3).await;
    load.end("API scaled to five replicas and back to three").await;
    assert_eq!(stack.containers("api", false).len(), 3);
    assert_eq!(inspect(&stack.container("nginx"))["State"]["StartedAt"], nginx, "nginx was restarted");
}

/// The number of transactions that the read replica has committed for the app.
fn replica_reads(stack: &Stack) -> u64 {
    stack.sql("replica", "select xact_commit from pg_stat_database where datname = 'app'").parse().unwrap()
}

pub async fn lists_survive_a_restart_of_the_read_replica(stack: &Stack) {
    assert_eq!(stack.sql("replica", "select pg_is_in_recovery()"), "t");
    // This tenant has written nothing, so its lists may be read from the replica.
    let reader = stack.client.with_key(&stack.key("reader"));
    // Repeated, because after a failure of Redis all lists are read from the primary for a while, and because Postgres
    // reports statistics late.
    let lists = async || {
        poll_until(60, "the lists are read from the replica", async || {
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
    load.wait_for_progress().await;
    stack.compose(&["start", "replica"]);
    stack.wait_until_healthy(3).await;
    assert_eq!(load.end("the read replica stopped and started").await, 0, "GETs without a response");
    lists().await;
}

pub async fn read_replica_without_its_slot_copies_the_primary_again(stack: &Stack) {
    stack.compose(&["stop", "replica"]);
    // The same effect as when the slot's WAL exceeds max_slot_wal_keep_size.
    stack.sql("postgres", "select pg_drop_replication_slot('replica')");
    stack.compose(&["start", "replica"]);
    stack.wait_until_healthy(3).await;
    let copied = || stack.compose(&["logs", "--no-color", "replica"]).matches("copying the primary again").count();
    assert_eq!(copied(), 1);
    // A running replica cannot copy the primary again, but its health check fails.
    for statement in [
        "alter role replica nologin",
        "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots",
        "select pg_drop_replication_slot('replica')",
        "alter role replica login",
    ] {
        stack.sql("postgres", statement);
    }
    poll_until(60, "the replica is unhealthy", async || {
        let health = inspect(&stack.container("replica"))["State"]["Health"]["Status"].clone();
        if health == "unhealthy" { Ok(()) } else { Err(health) }
    })
    .await;
    stack.compose(&["restart", "replica"]);
    stack.wait_until_healthy(3).await;
    assert_eq!(copied(), 2);
    assert_eq!(stack.sql("replica", "select pg_is_in_recovery()"), "t");
    poll_until(60, "the replica streams", async || {
        let state = stack.sql("postgres", "select state from pg_stat_replication");
        if state == "streaming" { Ok(()) } else { Err(state) }
    })
    .await;
}

pub async fn restart_of_redis_loses_no_request(stack: &Stack) {
    let load = Load::start(stack).await;
    stack.compose(&["restart", "redis"]);
    stack.wait_until_healthy(3).await;
    assert_eq!(load.end("Redis restarted").await, 0, "GETs without a response");
}

pub async fn reload_of_nginx_loses_no_request(stack: &Stack) {
    let load = Load::start(stack).await;
    let nginx = stack.container("nginx");
    for _ in 0..3 {
        let workers =
            || docker(&["exec", &nginx, "cat", "/tmp/nginx.pid"]) + &docker(&["top", &nginx, "-o", "pid,args"]);
        let before = workers();
        docker(&["kill", "-s", "HUP", &nginx]);
        poll_until(
            60,
            "new nginx worker processes",
            async || if workers() == before { Err(before.clone()) } else { Ok(()) },
        )
        .await;
        load.wait_for_progress().await;
    }
    load.end("nginx reloaded three times").await;
}

/// Kills the process directly: a container that is killed through Docker is not restarted.
pub async fn killed_replica_loses_no_request(stack: &Stack) {
    let load = Load::start(stack).await;
    for _ in 0..2 {
        let victim = stack.containers("api", false).remove(0);
        let restarts = inspect(&victim)["RestartCount"].as_u64().unwrap();
        let pid = inspect(&victim)["State"]["Pid"].to_string();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success(), "kill -9 needs root");
        poll_until(60, "Docker restarts the container", async || {
            let now = inspect(&victim)["RestartCount"].as_u64().unwrap();
            if now > restarts { Ok(()) } else { Err(now) }
        })
        .await;
        stack.wait_until_healthy(3).await;
        load.wait_for_progress().await;
    }
    load.end("a replica killed with kill -9, twice").await;
}

pub async fn instances_run_on_while_the_worker_restarts(stack: &Stack) {
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
    stack.wait_until_healthy(3).await;
    // Then the worker is killed without a shutdown.
    let pid = inspect(&stack.container("worker"))["State"]["Pid"].to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success(), "kill -9 needs root");
    poll_until(60, "the worker was restarted", async || {
        let now = inspect(&stack.container("worker"))["State"]["Pid"].to_string();
        if now != pid && now != "0" { Ok(()) } else { Err(now) }
    })
    .await;
    stack.wait_until_healthy(3).await;
    load.end("the worker restarted, then killed").await;
    stop.store(true, Relaxed);
    assert!(visitor.await.unwrap() > 50);
    assert_eq!(inspect(&container)["State"]["StartedAt"], before);
    let id = instance["id"].as_str().unwrap();
    assert_eq!(stack.client.get(&format!("/instances/{id}")).await.expect(200).body["status"], "running");
    stack.client.delete_fully(id).await;
}
