//! `app migrate`: concurrent runs, databases that start late or never, and the report of pending migrations.

use std::time::Duration;

use futures_util::future;

use super::exited::run_to_exit;
use crate::support::{App, Cluster, Postgres, cluster::with_database};

const SCHEMA: &str = include_str!("../../../migrations/V0001__foundation.sql");
const SECONDS: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn ten_concurrent_migrations_apply_the_schema_once() {
    let cluster = Cluster::empty().await;

    let exited = std::thread::scope(|scope| {
        let all: Vec<_> =
            (0..10).map(|_| scope.spawn(|| run_to_exit(cluster.command(&["migrate"]), SECONDS))).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
    });
    let (mut applied, mut found_it_done) = (0, 0);
    for one in exited {
        let one = one.expect(0);
        let lines: Vec<&str> = one.stdout.lines().collect();
        match lines.as_slice() {
            ["migrate: nothing to do"] => found_it_done += 1,
            all if all.iter().all(|line| line.starts_with("migrate: applied V")) && !all.is_empty() => applied += 1,
            other => panic!("{other:?}"),
        }
    }

    assert_eq!((applied, found_it_done), (1, 9));

    let sql = cluster.sql().await;
    let history = "select count(*), count(distinct version) from refinery_schema_history";
    let row = sql.query_one(history, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), row.get::<_, i64>(1), "a migration is recorded twice");
    assert_eq!(sql.query("select id from cluster", &[]).await.unwrap().len(), 1);
}

/// The control: the same SQL at the same time, without the lock. If this ever passes, the test above proves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn ten_concurrent_migrations_collide_without_the_lock() {
    let cluster = Cluster::empty().await;
    let clients = future::join_all((0..10).map(|_| cluster.sql())).await;
    let all =
        clients.iter().map(|client| async move { client.batch_execute(&format!("begin; {SCHEMA}; commit")).await });
    let failed = future::join_all(all).await.into_iter().filter(Result::is_err).count();
    assert_eq!(failed, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_check_reports_pending_and_changes_nothing() {
    let cluster = Cluster::empty().await;

    let by_variable = || {
        let mut command = cluster.command(&["migrate"]);
        command.env("APP_MIGRATE_CHECK", "true");
        command
    };
    for _ in 0..2 {
        for command in [cluster.command(&["migrate", "--check"]), by_variable()] {
            let checked = run_to_exit(command, SECONDS).expect(1);
            assert!(checked.stdout.starts_with("migrate: pending V1__foundation\n"), "{checked:?}");
            assert_eq!(checked.stderr, "");
        }
    }
    let tables = "select count(*) from pg_tables where schemaname = 'public'";

    assert_eq!(cluster.sql().await.query_one(tables, &[]).await.unwrap().get::<_, i64>(0), 0);

    cluster.run(&["migrate"]);
    for command in [cluster.command(&["migrate", "--check"]), by_variable()] {
        assert_eq!(run_to_exit(command, SECONDS).expect(0).stdout, "migrate: nothing pending\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_waits_for_a_database_that_starts_late() {
    let cluster = Cluster::empty().await;
    let mut server = Postgres::initialised();

    let mut command = cluster.command(&["migrate"]);
    command.env("DATABASE_URL", server.url("postgres")).env("DB_WAIT_SECONDS", "30");
    let mut migrate = App::spawn("migrate", command);
    migrate.line("waiting for the database");
    server.start().await;
    assert!(migrate.wait().success(), "{}", migrate.log());

    let cluster_rows = server.sql("postgres").await.query("select id from cluster", &[]).await.unwrap();
    assert_eq!(cluster_rows.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_gives_up_on_an_unreachable_database_in_one_line() {
    let cluster = Cluster::empty().await;
    let server = Postgres::initialised();

    for (wait, role) in [(0, "serve"), (1, "migrate"), (2, "work")] {
        let mut command = cluster.command(&[role]);
        let url = server.url("postgres") + "&password=sesame";
        command.env("DATABASE_URL", url).env("DB_WAIT_SECONDS", wait.to_string()).env("RUST_LOG", "warn");
        let gone = run_to_exit(command, Duration::from_secs(wait + 30)).expect(1);
        let line = gone.line();
        assert!(line.starts_with("app: DATABASE_URL: ") && line.contains(&format!("within {wait} s: ")), "{line}");
        assert!(!line.contains("sesame") && gone.took >= Duration::from_secs(wait), "{gone:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_wait_for_the_schema_and_report_when_it_is_missing() {
    let mut cluster = Cluster::empty().await;

    for role in ["serve", "work", "dev", "purge"] {
        let mut command = cluster.command(&[role]);
        command.env("DB_WAIT_SECONDS", "0").env("RUST_LOG", "warn");
        let refused = run_to_exit(command, SECONDS).expect(1);
        assert!(
            refused.line().starts_with("app: DATABASE_URL: ") && refused.line().ends_with("run: app migrate"),
            "{refused:?}"
        );
    }
    cluster.set("DB_WAIT_SECONDS", 30);
    let api = cluster.spawn("serve");
    api.line("waiting for `app migrate`");
    cluster.run(&["migrate"]);

    api.line("the API listens");
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_gives_up_on_a_read_only_server_in_one_line() {
    let primary = Postgres::primary().await;
    let cluster = Cluster::on(&primary).await;
    let standby = Postgres::replica_of(&primary).await;

    let database: tokio_postgres::Config = cluster.database_url.parse().unwrap();
    let standby = with_database(&standby.url("postgres"), database.get_dbname().unwrap());
    let read_only = format!("{}&options=-c%20default_transaction_read_only%3Don", cluster.database_url);
    let secrets = ["secrets", "init"];
    cluster.run(&secrets);

    for (n, arguments) in [
        &["migrate"][..],
        &["migrate", "--check"],
        &["serve"],
        &["work"],
        &["dev"],
        &["keys", "create", "--tenant", "acme", "--name", "k", "--scope", "admin"],
        &["tenants", "suspend", "--tenant", "acme"],
    ]
    .into_iter()
    .enumerate()
    {
        let mut command = cluster.command(arguments);
        let url = if n % 2 == 0 { &standby } else { &read_only };
        command.env("DATABASE_URL", url).env("DB_WAIT_SECONDS", "0").env("RUST_LOG", "warn");
        let refused = run_to_exit(command, SECONDS).expect(1);
        let line = refused.line();
        assert!(line.starts_with("app: DATABASE_URL: the server took no writes within 0 s: "), "{arguments:?}: {line}");
        assert_eq!(refused.stdout, "", "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_waits_until_a_standby_is_promoted() {
    let primary = Postgres::primary().await;
    let mut cluster = Cluster::on(&primary).await;
    let standby = Postgres::replica_of(&primary).await;

    let database: tokio_postgres::Config = cluster.database_url.parse().unwrap();
    cluster.database_url = with_database(&standby.url("postgres"), database.get_dbname().unwrap());
    cluster.set("DB_WAIT_SECONDS", 30);
    let api = cluster.spawn("serve");
    let waiting = api.line("waiting for the database");
    assert!(waiting.contains("DATABASE_URL takes no writes"), "{waiting}");

    let promoted = standby.sql("postgres").await.query_one("select pg_promote()", &[]).await.unwrap();
    assert!(promoted.get::<_, bool>(0));

    api.line("the API listens");
}
