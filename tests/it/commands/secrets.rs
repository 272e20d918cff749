//! What no log line may contain, whatever `RUST_LOG` is: keys, their secrets, passwords, and what tenants send.

use std::fs;

use serde_json::json;

use crate::support::{Client, Cluster, Postgres, cluster::base_url, redis_server::RedisServer};

/// More verbose than any sensible setting, with directives that try to get around the limits on single crates.
const EVERYTHING: &str = "trace,tokio_postgres=trace,tokio_postgres::query=trace,tokio_postgres::prepare=trace,\
                          bollard=trace,bollard::docker=trace,hyper=trace,fred=trace,actix_http=trace,app=trace";

/// A text to search for, and what it is.
type Needle = (&'static str, String);

/// Uses a cluster that logs everything. Returns all logs, and all texts that must not be in them.
async fn live(cluster: &Cluster) -> (String, Vec<Needle>) {
    let created = cluster
        .command(&["keys", "create", "--tenant", "acme", "--name", "first", "--scope", "admin"])
        .output()
        .unwrap();
    assert!(created.status.success());
    let mut logs = String::from_utf8(created.stderr).unwrap();
    let key = String::from_utf8(created.stdout).unwrap().trim().to_owned();
    let (api, worker) = (cluster.spawn("serve"), cluster.work());
    let client = Client::new(&base_url(&api), &key);

    let body = json!({
        "image": cluster.image, "env": {"TOKEN": "s3cr3t-env"}, "labels": {"app": "s3cr3t-label"},
    });
    let id = client.create_running(body).await["id"].as_str().unwrap().to_owned();
    client.get("/instances?label=app%3Ds3cr3t-label").await.expect(200);
    client.get(&format!("/instances/{id}")).await.expect(200);
    // Bodies that are refused must not be logged either.
    client.post("/instances", json!({"image": 7, "s3cr3t-field": "s3cr3t-value"})).await.expect(422);
    client.post("/instances", json!({"image": "web:1", "env": {"A": ["s3cr3t-type"]}})).await;

    let made = client.post("/keys", json!({"name": "second", "scopes": ["instances:read"]})).await.expect(201).body;
    let second = made["key"].as_str().unwrap().to_owned();
    client.with_key(&second).get("/keys/self").await.expect(200);
    client.delete(&format!("/keys/{}", made["id"].as_str().unwrap())).await.expect(204);
    client.with_key(&second).get("/keys/self").await.expect(401);
    // A key with a typo is still nearly the key.
    let typo = format!("{}X", &key[..55]);
    client.with_key(&typo).get("/keys/self").await;
    client.with_key("cpk_live_not-a-key-but-a-s3cr3t").get("/keys/self").await.expect(401);
    client.delete_fully(&id).await;

    let mut needles: Vec<Needle> =
        vec![("the first key", key), ("the second key", second), ("a key with a typo", typo)];
    needles.push(("a tenant's words", "s3cr3t".into()));
    for file in ["key-peppers", "key-tag-secrets"] {
        let text = fs::read_to_string(cluster.state.path().join("secrets").join(file)).unwrap();
        needles.push(("a generated secret", text.trim().split_once(':').unwrap().1.to_owned()));
    }
    for process in [api, worker] {
        process.signal(nix::sys::signal::Signal::SIGTERM);
        process.line("stopping");
        let mut process = process;
        process.wait();
        logs += &process.log();
    }
    (logs, needles)
}

#[track_caller]
fn assert_silent(logs: &str, needles: &[Needle]) {
    let mut leaks = Vec::new();
    for line in logs.lines() {
        for (what, needle) in needles.iter().filter(|(_, needle)| line.contains(needle.as_str())) {
            leaks.push(format!(
                "{what}: {}",
                line.replace(needle.as_str(), "<HERE>").chars().take(400).collect::<String>()
            ));
        }
    }
    assert!(leaks.is_empty(), "{} lines, of which:\n{}", leaks.len(), leaks[..leaks.len().min(12)].join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_hold_no_secrets_or_bodies_at_the_most_verbose_level() {
    // Passwords that are really used: Postgres checks one by SCRAM, Redis by AUTH.
    let server = Postgres::primary().await;
    let admin = server.sql("postgres").await;
    admin.batch_execute("create role guarded superuser login password 'pg-sesame'").await.unwrap();
    let hba = server.path("pg_hba.conf");
    let open = fs::read_to_string(&hba).unwrap();
    fs::write(&hba, format!("local all guarded scram-sha-256\n{open}")).unwrap();
    admin.batch_execute("select pg_reload_conf()").await.unwrap();
    let redis = RedisServer::start();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    redis.cli(&["config", "set", "port", &port.to_string()]);
    redis.cli(&["config", "set", "requirepass", "redis-sesame"]);

    let mut cluster = Cluster::on(&server).await;
    cluster.database_url = cluster.database_url.replace("postgres@", "guarded:pg-sesame@");
    cluster.set("REDIS_URL", format!("redis://:redis-sesame@127.0.0.1:{port}")).set("RUST_LOG", EVERYTHING);
    let (logs, mut needles) = live(&cluster).await;
    needles.extend([("Postgres' password", "pg-sesame".into()), ("Redis' password", "redis-sesame".into())]);
    // The test proves something only if everything was logged and the passwords were used.
    assert!(logs.contains("TRACE") && logs.lines().count() > 300, "{} lines", logs.lines().count());
    assert!(!logs.contains("redis does not answer"));
    assert_silent(&logs, &needles);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_hold_no_secrets_or_bodies_on_docker() {
    let Some(mut cluster) = Cluster::docker("logs_hold_no_secrets_or_bodies_on_docker").await else { return };
    cluster.set("RUST_LOG", EVERYTHING);
    let (logs, needles) = live(&cluster).await;
    assert!(logs.contains("TRACE") && logs.contains("docker answers"));
    assert_silent(&logs, &needles);
}
