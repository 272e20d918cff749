//! `app keys create` prints only the key on standard output, and creates the tenant when it does not exist.

use std::{process::Command, time::Duration};

use serde_json::json;

use super::exited::{Exited, run_to_exit};
use crate::support::Cluster;

const SECONDS: Duration = Duration::from_secs(60);

fn create(cluster: &Cluster, tenant: &str, scope: &str) -> Command {
    let mut command = cluster.command(&["keys", "create", "--tenant", tenant, "--name", "first", "--scope", scope]);
    command.env("RUST_LOG", "warn");
    command
}

/// Returns the key; panics when anything else was printed.
#[track_caller]
fn key(exited: &Exited) -> String {
    let key = exited.stdout.strip_suffix('\n').unwrap_or_else(|| panic!("{} bytes", exited.stdout.len()));
    let well_formed =
        key.len() == 56 && key.starts_with("cpk_live_") && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    assert!(well_formed, "not a key alone: {} bytes, {} lines", key.len(), exited.stdout.lines().count());
    key.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_concurrent_first_keys_create_one_tenant_and_network() {
    let cluster = Cluster::simulated().await;
    let keys = std::thread::scope(|scope| {
        let all: Vec<_> =
            (0..10).map(|_| scope.spawn(|| run_to_exit(create(&cluster, "new-one", "admin"), SECONDS))).collect();
        all.into_iter().map(|one| key(&one.join().unwrap().expect(0))).collect::<std::collections::BTreeSet<_>>()
    });
    assert_eq!(keys.len(), 10, "keys that are alike");
    let sql = cluster.sql().await;
    let tenants = sql.query("select id from tenants where name = 'new-one'", &[]).await.unwrap();
    assert_eq!(tenants.len(), 1);
    let networks = sql.query("select name, tenant_id from networks", &[]).await.unwrap();
    assert_eq!(networks.len(), 1);
    assert_eq!(networks[0].get::<_, String>(0), "default");
    assert_eq!(networks[0].get::<_, uuid::Uuid>(1), tenants[0].get::<_, uuid::Uuid>(0));

    let (_api, client) = cluster.serve();
    for key in &keys {
        let me = client.with_key(key).get("/keys/self").await.expect(200).body;
        assert_eq!((&me["name"], &me["scopes"]), (&json!("first"), &json!(["admin"])));
        assert_eq!(me["tenant_id"], tenants[0].get::<_, uuid::Uuid>(0).to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_scopes_come_from_option_or_variable() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();

    let mut by_variable = cluster.command(&["keys", "create"]);
    by_variable.env("APP_TENANT", "acme").env("APP_KEY_NAME", "by variable");
    by_variable.env("APP_KEY_SCOPES", "instances:read,networks:read");
    let mut by_option = create(&cluster, "acme", "instances:read");
    by_option.args(["--scope", "networks:read"]);

    for command in [by_variable, by_option] {
        let reader = client.with_key(&key(&run_to_exit(command, SECONDS).expect(0)));
        let me = reader.get("/keys/self").await.expect(200).body;
        assert_eq!(me["scopes"], json!(["instances:read", "networks:read"]));
        reader.get("/instances").await.expect(200);
        reader.post("/instances", json!({"image": cluster.image})).await.expect(403);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_limit_comes_from_option_or_variable() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("RATE_LIMIT_RPS", 0.001).set("RATE_LIMIT_BURST", 20);
    let (_api, client) = cluster.serve();

    let made = |command| client.with_key(&key(&run_to_exit(command, SECONDS).expect(0)));
    let mut by_option = create(&cluster, "acme", "keys:read");
    by_option.args(["--limit-rps", "0.5", "--limit-burst", "3"]);
    let mut by_variable = create(&cluster, "acme", "keys:read");
    by_variable.env("APP_KEY_LIMIT_RPS", "0").env("APP_KEY_LIMIT_BURST", "1");
    // The limit for all keys is not a key's own limit, though its variables are set here as well.
    let general = create(&cluster, "acme", "keys:read");
    for (command, limits, at_once) in [
        (by_option, json!({"rps": 0.5, "burst": 3}), "3"),
        (by_variable, json!({"rps": 0.0, "burst": 1}), ""),
        (general, json!(null), "20"),
    ] {
        let key = made(command);
        let me = key.get("/keys/self").await.expect(200);
        assert_eq!(me.header("ratelimit-limit"), at_once);
        let shown = key.get(&format!("/keys/{}", me.body["id"].as_str().unwrap())).await.expect(200);
        assert_eq!(shown.body["limits"], limits);
    }
    for (given, missing) in [("--limit-rps=5", "APP_KEY_LIMIT_BURST"), ("--limit-burst=20", "APP_KEY_LIMIT_RPS")] {
        let mut half = create(&cluster, "new-one", "admin");
        half.arg(given);
        let refused = run_to_exit(half, SECONDS).expect(1);
        assert!(refused.line().starts_with(&format!("app: {missing}: is needed when ")), "{refused:?}");
    }

    let sql = cluster.sql().await;

    assert!(sql.query("select id from tenants where name = 'new-one'", &[]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_key_request_fails_with_one_line_and_creates_nothing() {
    let cluster = Cluster::simulated().await;
    let refused = run_to_exit(create(&cluster, "acme", "root"), SECONDS).expect(1);
    assert!(refused.line().starts_with("app: APP_KEY_SCOPES: \"root\" is not one of instances:read, "), "{refused:?}");
    let refused = run_to_exit(create(&cluster, "Not A Label", "admin"), SECONDS).expect(1);
    assert!(refused.line().starts_with("app: APP_TENANT: \"Not A Label\" is not "), "{refused:?}");
    // The rules are those of `POST /keys`.
    for name in ["", " ", &"x".repeat(256)] {
        let mut named = cluster.command(&["keys", "create", "--tenant", "acme", "--scope", "admin"]);
        named.env("APP_KEY_NAME", name);
        let refused = run_to_exit(named, SECONDS).expect(1);
        assert!(refused.line().starts_with("app: APP_KEY_NAME: must have 1 to 255 bytes"), "{refused:?}");
    }
    assert_eq!(refused.stdout, "");
    assert!(cluster.sql().await.query("select id from tenants", &[]).await.unwrap().is_empty());

    let empty = Cluster::empty().await;
    let mut command = create(&empty, "acme", "admin");
    command.env("DB_WAIT_SECONDS", "0");
    let refused = run_to_exit(command, SECONDS).expect(1);
    assert!(refused.line().ends_with("run: app migrate") && refused.stdout.is_empty(), "{refused:?}");
}
