//! A compose project: starts it with the command of the README, runs commands in it, and removes it.

use std::{
    path::PathBuf,
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::client::Client;

const SCALED: &[&str] = &["-f", "docker-compose.yml", "-f", "docker-compose.scale.yml"];

pub struct Stack {
    /// A clean copy of the checkout.
    dir: PathBuf,
    compose: Vec<String>,
    files: &'static [&'static str],
    /// The variables whose values two stacks on one Docker engine must not share.
    vars: Vec<(&'static str, String)>,
    pub project: String,
    pub url: String,
    /// Sends requests to nginx with an admin key.
    pub client: Client,
    is_down: AtomicBool,
}

const PURGE: &[&str] = &["run", "--rm", "--no-deps", "-T", "-e", "DB_WAIT_SECONDS=5", "worker", "purge", "--yes"];

impl Stack {
    /// Runs `docker-compose -f docker-compose.yml -f docker-compose.scale.yml up -d --scale api=3` and creates an
    /// instance.
    pub async fn up() -> Self {
        let started = Instant::now();
        let mut stack =
            Self::named(&var("TEST_STACK_PROJECT"), SCALED, &var("TEST_STACK_PORT"), 10000, "10.231.16.0/24");
        let output = stack.try_compose(&["up", "-d", "--scale", "api=3"]);
        if !output.status.success() {
            stack.print_logs();
        }
        succeeded("up", output);
        let up = started.elapsed();
        stack.client.key = stack.key("acme");
        let id = stack.client.post("/instances", serde_json::json!({"image": demo_image()})).await.instance();
        let accepted = started.elapsed();
        let instance = stack.client.wait_for(&id, "running").await;
        assert_eq!(instance["status"], "running", "{instance}");
        eprintln!(
            "from the command: up after {:.1} s, the first 202 after {:.1} s, the first running after {:.1} s",
            up.as_secs_f64(),
            accepted.as_secs_f64(),
            started.elapsed().as_secs_f64()
        );
        stack.client.delete_fully(&id).await;
        stack
    }

    /// Starts another stack beside the first, with `docker-compose.yml` only.
    pub fn second() -> Self {
        let project = format!("{}b", var("TEST_STACK_PROJECT"));
        let mut stack =
            Self::named(&project, &["-f", "docker-compose.yml"], &var("TEST_STACK_PORT_2"), 11000, "10.231.17.0/24");
        // So that orphans are removed at once.
        stack.vars.extend([("APP_RECHECK_MS", "500".into()), ("APP_ORPHAN_GRACE_MS", "0".into())]);
        stack.compose(&["up", "-d"]);
        stack.client.key = stack.key("acme");
        stack
    }

    fn named(project: &str, files: &'static [&'static str], port: &str, ports_from: u16, cidr: &str) -> Self {
        let url = format!("http://127.0.0.1:{port}");
        let vars = vec![
            ("COMPOSE_PROJECT_NAME", project.to_owned()),
            ("APP_HTTP_PORT", port.to_owned()),
            ("APP_PORT_RANGE", format!("{ports_from}-{}", ports_from + 999)),
            ("APP_DEFAULT_CIDR", cidr.to_owned()),
        ];
        let compose = var("TEST_STACK_COMPOSE").split(' ').map(str::to_owned).collect();
        let client = Client::new(&url, "");
        let (dir, is_down) = (var("TEST_STACK_DIR").into(), AtomicBool::new(false));
        Self { dir, compose, files, vars, project: project.into(), url, client, is_down }
    }

    pub fn try_compose(&self, args: &[&str]) -> Output {
        let mut command = Command::new(&self.compose[0]);
        command.args(&self.compose[1..]).args(self.files).args(args).current_dir(&self.dir);
        command.envs(self.vars.iter().map(|(name, value)| (name, value)));
        command.output().unwrap()
    }

    /// Its standard output; it must succeed.
    #[track_caller]
    pub fn compose(&self, args: &[&str]) -> String {
        succeeded(&format!("compose {}", args.join(" ")), self.try_compose(args))
    }

    /// Creates a key of a tenant with all scopes.
    #[track_caller]
    pub fn key(&self, tenant: &str) -> String {
        let create = ["keys", "create", "--tenant", tenant, "--name", "test", "--scope", "admin"];
        let output = self.compose(&[&["run", "--rm", "--no-deps", "-T", "api"][..], &create].concat());
        output.trim().to_owned()
    }

    /// Returns the ids of a service's containers; with `all` also of those that have ended.
    pub fn containers(&self, service: &str, all: bool) -> Vec<String> {
        let project = format!("label=com.docker.compose.project={}", self.project);
        let named = format!("label=com.docker.compose.service={service}");
        let once = "label=com.docker.compose.oneoff=False";
        let mut args = vec!["ps", "-q", "--no-trunc", "-f", &project, "-f", &named, "-f", once];
        args.extend(all.then_some("-a"));
        docker(&args).split_whitespace().map(str::to_owned).collect()
    }

    /// Returns the id of a service's only container.
    #[track_caller]
    pub fn container(&self, service: &str) -> String {
        let all = self.containers(service, true);
        let [one] = all.as_slice() else { panic!("{service}: {all:?}") };
        one.clone()
    }

    /// Returns a container's address in `front` or `back`.
    #[track_caller]
    pub fn address(&self, container: &str, network: &str) -> String {
        let name = format!("{}_{network}", self.project);
        inspect(container)["NetworkSettings"]["Networks"][name]["IPAddress"].as_str().unwrap().to_owned()
    }

    /// Returns the lines of nginx's log that are JSON.
    pub fn nginx_log(&self) -> Vec<Value> {
        let log = docker(&["logs", &self.container("nginx")]);
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Returns the address of the replica that served each request whose id starts with `id`.
    pub fn served_by(&self, id: &str) -> Vec<String> {
        let begins = |line: &&Value| line["request_id"].as_str().is_some_and(|text| text.starts_with(id));
        self.nginx_log().iter().filter(begins).map(|line| line["upstream"].as_str().unwrap().to_owned()).collect()
    }

    /// Runs a statement as superuser in the Postgres of a service.
    #[track_caller]
    pub fn sql(&self, service: &str, statement: &str) -> String {
        let container = self.container(service);
        docker(&["exec", "-u", "postgres", &container, "psql", "-XAtq", "app", "-c", statement]).trim().to_owned()
    }

    /// Waits until all services are healthy and nginx has this number of replicas.
    pub async fn wait_until_healthy(&self, replicas: usize) {
        crate::poll_until(180, "all services are healthy", async || {
            let mut bad = Vec::new();
            for service in ["api", "worker", "nginx", "postgres", "replica", "redis", "prometheus"] {
                for container in self.containers(service, true) {
                    let health = inspect(&container)["State"]["Health"]["Status"].clone();
                    if health != "healthy" {
                        bad.push(format!("{service} {health}"));
                    }
                }
            }
            let upstream = self.upstream_size();
            if bad.is_empty() && upstream == replicas { Ok(()) } else { Err(format!("{bad:?}, nginx has {upstream}")) }
        })
        .await;
    }

    /// Returns how many replicas are in nginx's upstream.
    pub fn upstream_size(&self) -> usize {
        let output = docker(&["exec", &self.container("nginx"), "cat", "/tmp/upstream.conf"]);
        output.matches("server ").count()
    }

    /// Prints the logs after a failure.
    pub fn print_logs(&self) {
        let output =
            self.try_compose(&["logs", "--no-color", "--tail=15", "worker", "postgres", "replica", "redis", "migrate"]);
        eprintln!("{}", String::from_utf8_lossy(&output.stdout));
        let output = self.try_compose(&["logs", "--no-color", "--tail=300", "nginx"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let wrong = text.lines().filter(|line| !line.contains("\"status\":2")).collect::<Vec<_>>();
        eprintln!("{}", wrong.join("\n"));
    }

    /// Does the same as `make down ARGS=-v` and checks that nothing of the project is left.
    #[track_caller]
    pub fn down(&self) {
        self.compose(&["stop", "nginx", "api", "worker"]);
        self.compose(PURGE);
        self.compose(&["down", "-v", "--remove-orphans"]);
        self.is_down.store(true, Relaxed);
        let project = format!("label=com.docker.compose.project={}", self.project);
        for kind in ["container", "network", "volume"] {
            let all: &[&str] = if kind == "container" { &["-a"] } else { &[] };
            let left = docker(&[&[kind, "ls", "-q", "-f", &project][..], all].concat());
            assert_eq!(left.trim(), "", "{kind}s are left");
        }
    }
}

impl Drop for Stack {
    /// Removes the stack after a panic.
    fn drop(&mut self) {
        if self.is_down.load(Relaxed) {
            return;
        }
        self.try_compose(&["stop", "nginx", "api", "worker"]);
        self.try_compose(PURGE);
        self.try_compose(&["down", "-v", "--remove-orphans", "-t", "5"]);
    }
}

/// Runs `docker …`, which must succeed, and returns its standard output.
#[track_caller]
pub fn docker(args: &[&str]) -> String {
    succeeded(&format!("docker {}", args.join(" ")), Command::new("docker").args(args).output().unwrap())
}

/// Runs `docker …` and returns whether it succeeded.
pub fn docker_succeeds(args: &[&str]) -> bool {
    Command::new("docker").args(args).output().unwrap().status.success()
}

#[track_caller]
pub fn inspect(name: &str) -> Value {
    let list: Value = serde_json::from_str(&docker(&["inspect", name])).unwrap();
    list[0].clone()
}

#[track_caller]
fn succeeded(what: &str, output: Output) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}

#[track_caller]
pub fn var(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run make test-stack"))
}

pub fn demo_image() -> String {
    var("TEST_DEMO_IMAGE")
}

/// Returns an instance's page as soon as it is served. An instance is `running` once its process has started; until the
/// process listens, connections fail.
pub async fn first_page(instance: &Value) -> String {
    let mut first = String::new();
    crate::poll_until(60, "the first page", async || page(instance).await.map(|page| first = page)).await;
    first
}

/// Requests the page of an instance.
pub async fn page(instance: &Value) -> Result<String, reqwest::Error> {
    let port = instance["ports"][0]["host"].as_u64().unwrap();
    let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).build().unwrap();
    http.get(format!("http://127.0.0.1:{port}/")).send().await?.error_for_status()?.text().await
}
