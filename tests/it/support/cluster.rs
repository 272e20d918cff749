//! A cluster of a test's own: a database, a range of ports, a default network and a state directory. Tests share
//! Redis and Docker, where the names of all keys and containers carry the cluster's id. Dropping a cluster removes all
//! of it.

use std::{
    process::{Command, Output},
    sync::atomic::{AtomicU16, Ordering},
};

use tempfile::TempDir;

use super::{App, Client, Postgres, env};

/// Numbers the clusters of this run, so that each has 60 ports and a /24 of its own.
static NEXT: AtomicU16 = AtomicU16::new(0);
const PORTS: u16 = 60;

pub struct Cluster {
    pub database_url: String,
    pub redis_url: String,
    /// The address of the Docker engine; `None` for the simulated backend.
    pub docker_host: Option<String>,
    /// An image that serves a page on port 80; with the simulated backend any name.
    pub image: String,
    pub state: TempDir,
    name: String,
    n: u16,
    settings: Vec<(String, String)>,
    /// The URL through which `Drop` drops the database; `None` when the database's server is dropped instead.
    drop_by: Option<String>,
}

impl Cluster {
    /// Creates a cluster on the simulated backend.
    pub async fn simulated() -> Self {
        Self::new(None, "web:1".into()).await
    }

    /// Creates a cluster on real Docker; `None` where there is no engine, and then this test reports itself as
    /// skipped.
    pub async fn docker(test: &str) -> Option<Self> {
        let (host, image) = env::docker(test)?;
        Some(Self::new(Some(host), image).await)
    }

    /// Creates a cluster with an empty database that is not migrated yet.
    pub async fn empty() -> Self {
        Self::unmigrated(&env::required("TEST_DATABASE_URL"), None, "web:1".into()).await
    }

    /// Creates a cluster on the simulated backend and a Postgres of the test's own.
    pub async fn on(server: &Postgres) -> Self {
        let mut cluster = Self::unmigrated(&server.url("postgres"), None, "web:1".into()).await;
        // The database is removed with its server, which may be stopped by then.
        cluster.drop_by = None;
        cluster.run(&["migrate"]);
        cluster
    }

    async fn new(docker_host: Option<String>, image: String) -> Self {
        let cluster = Self::unmigrated(&env::required("TEST_DATABASE_URL"), docker_host, image).await;
        cluster.run(&["migrate"]);
        cluster
    }

    async fn unmigrated(admin_url: &str, docker_host: Option<String>, image: String) -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("it_{}_{n}", std::process::id());
        let admin = connect(admin_url).await;
        admin.batch_execute(&format!("create database {name}")).await.unwrap();
        let database_url = with_database(admin_url, &name);
        Self {
            database_url,
            redis_url: env::required("TEST_REDIS_URL"),
            docker_host,
            image,
            state: TempDir::new().unwrap(),
            name,
            n,
            settings: Vec::new(),
            drop_by: Some(admin_url.into()),
        }
    }

    /// Sets a variable for all processes that are started from now on.
    pub fn set(&mut self, variable: &str, value: impl ToString) -> &mut Self {
        self.settings.retain(|(known, _)| known != variable);
        self.settings.push((variable.into(), value.to_string()));
        self
    }

    /// Returns a command that runs the program with this cluster's environment and no other variable.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_app"));
        let first_port = 10_000 + self.n * PORTS;
        command.args(arguments).env_clear();
        for (variable, value) in [
            ("PATH", std::env::var("PATH").unwrap_or_default()),
            ("RUST_BACKTRACE", "1".into()),
            ("RUST_LOG", "info,app=debug".into()),
            ("DATABASE_URL", self.database_url.clone()),
            ("REDIS_URL", self.redis_url.clone()),
            ("DB_MAX_CONNS", "8".into()),
            ("APP_LISTEN", "127.0.0.1:0".into()),
            ("APP_WORK_LISTEN", "127.0.0.1:0".into()),
            ("APP_HTTP_WORKERS", "2".into()),
            ("APP_SHUTDOWN_DELAY_MS", "0".into()),
            ("APP_HOST_NAME", "h1".into()),
            ("APP_STATE_DIR", self.state.path().display().to_string()),
            ("APP_PORT_RANGE", format!("{first_port}-{}", first_port + PORTS - 1)),
            ("APP_DEFAULT_CIDR", format!("10.{}.{}.0/24", 100 + self.n / 256, self.n % 256)),
            // A tenth of the production defaults, so that tests need not wait for long.
            ("APP_LEASE_MS", "3000".into()),
            ("APP_RECHECK_MS", "2000".into()),
            ("APP_RESTART_BACKOFF_MS", "100".into()),
            ("SIMULATED_LATENCY_MS", "5".into()),
        ] {
            command.env(variable, value);
        }
        match &self.docker_host {
            Some(host) => command.env("DOCKER_HOST", host),
            None => command.env("COMPUTE_BACKEND", "simulated").env("NETWORK_BACKEND", "simulated"),
        };
        command.envs(self.settings.iter().map(|(variable, value)| (variable, value)));
        command
    }

    /// Runs the program to its end and returns standard output; panics when it fails.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output: Output = self.command(arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "app {arguments:?}: {}\n{stderr}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Creates a key with one scope for a tenant, which is created when it does not exist.
    pub fn key(&self, tenant: &str, scope: &str) -> String {
        let output = self.run(&["keys", "create", "--tenant", tenant, "--name", "test", "--scope", scope]);
        output.trim_end().to_owned()
    }

    /// Starts an API replica, and returns it with a client of the tenant `acme` that has an admin key.
    pub fn serve(&self) -> (App, Client) {
        let api = self.spawn("serve");
        let client = Client::new(&base_url(&api), &self.key("acme", "admin"));
        (api, client)
    }

    /// Starts a worker and waits until it has registered.
    pub fn work(&self) -> App {
        let worker = self.spawn("work");
        worker.line("the worker is registered");
        worker
    }

    /// Starts a process of this role and does not wait.
    pub fn spawn(&self, role: &str) -> App {
        App::spawn(&format!("{role} of {}", self.name), self.command(&[role]))
    }

    /// Opens a connection to the cluster's database, to read and change rows that the API does not show.
    pub async fn sql(&self) -> tokio_postgres::Client {
        connect(&self.database_url).await
    }

    /// Reads this cluster's id.
    pub async fn id(&self) -> uuid::Uuid {
        self.sql().await.query_one("select id from cluster", &[]).await.unwrap().get(0)
    }

    /// Returns the names of this cluster's Redis keys that begin with `prefix` after the cluster's own prefix.
    pub async fn in_redis(&self, prefix: &str) -> Vec<String> {
        let pattern = format!("app:{}:{prefix}*", self.id().await);
        let scan = Command::new("redis-cli").args(["-u", &self.redis_url, "--scan", "--pattern", &pattern]).output();
        let output = scan.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(ToOwned::to_owned).collect()
    }

    /// Returns this cluster's containers, networks and volumes in Docker.
    pub async fn in_docker(&self) -> Vec<String> {
        let id = self.id().await;
        let host = self.docker_host.as_deref().expect("on Docker");
        let list = |what: &[&str]| {
            let filter = format!("label=app.cluster={id}");
            let output = Command::new("docker")
                .args(["-H", host])
                .args(what)
                .args(["--filter", &filter, "--format", "{{.ID}}"])
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap().lines().map(|id| format!("{} {id}", what[0])).collect::<Vec<_>>()
        };
        [list(&["ps", "-a"]), list(&["network", "ls"]), list(&["volume", "ls", "-q"])].concat()
    }
}

/// Reads from an API's log the address on which it listens.
pub fn base_url(api: &App) -> String {
    let line = api.line("the API listens");
    let address = line.rsplit("address=").next().unwrap().trim();
    format!("http://{address}")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.docker_host.is_some() {
            let purged = self.command(&["purge", "--yes"]).output();
            if let Ok(output) = purged
                && !output.status.success()
                && !std::thread::panicking()
            {
                panic!("purge: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        let (Some(admin_url), name) = (self.drop_by.take(), self.name.clone()) else { return };
        // `self.database_url` may name a proxy of the test, which is gone by now.
        let database_url = with_database(&admin_url, &name);
        // A separate thread and runtime: `drop` may run inside a runtime, which cannot block on another one.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let cluster = connect(&database_url).await.query_one("select id::text from cluster", &[]).await;
                if let Ok(row) = cluster {
                    remove_locks(row.get(0));
                }
                connect(&admin_url).await.batch_execute(&format!("drop database {name} with (force)")).await
            })
        });
        let _ = dropped.join();
    }
}

/// Removes the lock files that killed workers leave behind.
fn remove_locks(cluster: &str) {
    for entry in std::fs::read_dir("/run").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&format!("app-{cluster}-")) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

pub async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Returns the same URL with another database.
pub fn with_database(url: &str, database: &str) -> String {
    let (rest, query) = url.split_once('?').map_or((url, None), |(rest, query)| (rest, Some(query)));
    let (server, _) = rest.rsplit_once('/').unwrap();
    query.map_or_else(|| format!("{server}/{database}"), |query| format!("{server}/{database}?{query}"))
}
