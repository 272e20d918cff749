//! `APP_ENV=production` refuses settings that are only fit for development.

use std::{process::Command, time::Duration};

use super::exited::run_to_exit;
use crate::support::{App, Client, Cluster, cluster::base_url};

const SECONDS: Duration = Duration::from_secs(60);

/// A command with a complete production configuration.
fn production(cluster: &Cluster, role: &str) -> Command {
    let mut command = cluster.command(&[role]);
    command.env_remove("RUST_LOG").env("APP_ENV", "production").env("APP_ALLOW_SIMULATED", "true");
    command.env("APP_KEY_PEPPERS", format!("1:{}", "5e".repeat(32)));
    command.env("APP_KEY_TAG_SECRETS", format!("1:{}", "7a".repeat(32)));
    command.env("APP_CACHE_SECRETS", format!("1:{}", "3c".repeat(32)));
    command.env("DB_WAIT_SECONDS", "0");
    command
}

#[track_caller]
fn assert_refused(command: Command, begin: &str, reason: &str) {
    let exited = run_to_exit(command, SECONDS).expect(1);
    let line = exited.line();
    assert!(line.starts_with(&format!("app: {begin}: ")) && line.contains(reason), "{line}");
    assert!(!line.contains("sesame"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn production_starts_when_everything_is_given() {
    let mut cluster = Cluster::simulated().await;

    let peppers = format!("1:{}", "5e".repeat(32));
    cluster.set("APP_ENV", "production").set("APP_ALLOW_SIMULATED", "true");
    cluster.set("APP_KEY_PEPPERS", peppers).set("APP_KEY_TAG_SECRETS", format!("1:{}", "7a".repeat(32)));
    cluster.set("APP_CACHE_SECRETS", format!("1:{}", "3c".repeat(32)));
    let (api, client) = cluster.serve();
    client.get("/keys/self").await.expect(200);

    let worker = cluster.work();
    // No secrets were generated beside those that were given.
    assert!(!cluster.state.path().join("secrets").exists());
    assert!(api.terminate().success() && worker.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn production_requires_the_secrets_that_each_process_uses() {
    let cluster = Cluster::simulated().await;

    for role in ["serve", "dev"] {
        for secret in ["APP_CACHE_SECRETS", "APP_KEY_PEPPERS", "APP_KEY_TAG_SECRETS"] {
            let mut command = production(&cluster, role);
            command.env_remove(secret);
            assert_refused(command, secret, "must be set when APP_ENV=production");
        }
    }
    // A worker uses no key secrets.
    let worker = App::spawn("a worker in production", {
        let mut command = production(&cluster, "work");
        command
            .env_remove("APP_KEY_PEPPERS")
            .env_remove("APP_KEY_TAG_SECRETS")
            .env_remove("APP_CACHE_SECRETS")
            .env("DB_WAIT_SECONDS", "30");
        command
    });

    worker.line("the worker is registered");

    assert!(!cluster.state.path().join("secrets").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn production_requires_a_database_and_an_explicit_tls_mode() {
    let cluster = Cluster::simulated().await;

    for role in ["serve", "work", "dev", "migrate", "purge"] {
        let mut command = production(&cluster, role);
        command.env_remove("DATABASE_URL");
        assert_refused(command, "DATABASE_URL", "must be set when APP_ENV=production");
        for url in ["postgresql://u:sesame@db.invalid/x", "postgresql://u:sesame@192.0.2.1/x?sslmode=prefer"] {
            let mut command = production(&cluster, role);
            command.env("DATABASE_URL", url);
            assert_refused(command, "DATABASE_URL", "sslmode=require");
            let mut command = production(&cluster, role);
            command.env("DATABASE_READ_URL", url);
            assert_refused(command, "DATABASE_READ_URL", "sslmode=require");
        }
    }
    // With an explicit `sslmode` the process tries to connect.
    let mut command = production(&cluster, "migrate");

    command.env("DATABASE_URL", "postgresql://u:sesame@db.invalid/x?sslmode=disable");

    assert_refused(command, "DATABASE_URL", "did not answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn production_refuses_simulated_backends_unless_allowed() {
    let cluster = Cluster::simulated().await;
    for role in ["work", "dev", "purge"] {
        let mut command = production(&cluster, role);
        command.env_remove("APP_ALLOW_SIMULATED");
        assert_refused(command, "COMPUTE_BACKEND", "APP_ALLOW_SIMULATED=true");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn development_generates_secrets_that_all_processes_share() {
    let cluster = Cluster::simulated().await;
    let (first, client) = cluster.serve();
    let second = cluster.spawn("serve");
    let elsewhere = Client::new(&base_url(&second), &client.key);
    elsewhere.get("/keys/self").await.expect(200);
    assert!(first.terminate().success() && second.terminate().success());
}
