//! One compose project: brought up by the exact command, asked, broken and taken down.

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
    /// A clean checkout.
    dir: PathBuf,
    compose: Vec<String>,
    files: &'static [&'static str],
    /// What two stacks on one Docker must not share.
    vars: Vec<(&'static str, String)>,
    pub project: String,
    pub url: String,
    /// An admin's, through nginx.
    pub client: Client,
    is_down: AtomicBool,
}

const PURGE: &[&str] = &["run", "--rm", "--no-deps", "-T", "-e", "DB_WAIT_SECONDS=5", "worker", "purge", "--yes"];

impl Stack {
    /// `docker-compose -f docker-compose.yml -f docker-compose.scale.yml up -d --scale api=3`.
    pub async fn up() -> Self {
        let began = Instant::now();
        let mut stack =
            Self::named(&var("TEST_STACK_PROJECT"), SCALED, &var("TEST_STACK_PORT"), 10000, "10.231.16.0/24");
        let said = stack.try_compose(&["up", "-d", "--scale", "api=3"]);
        if !said.status.success() {
            stack.tell_logs();
        }
        succeeded("up", said);
        let up = began.elapsed();
        stack.client.key = stack.key("acme");
        let id = stack.client.post("/instances", serde_json::json!({"image": demo_image()})).await.instance();
        let accepted = began.elapsed();
        let instance = stack.client.wait_for(&id, "running").await;
        assert_eq!(instance["status"], "running", "{instance}");
        eprintln!(
            "from the command: up after {:.1} s, the first 202 after {:.1} s, the first running after {:.1} s",
            up.as_secs_f64(),
            accepted.as_secs_f64(),
            began.elapsed().as_secs_f64()
        );
        stack.client.delete_fully(&id).await;
        stack
    }

    /// Another one beside the first: `docker-compose.yml` alone.
    pub fn second() -> Self {
        let project = format!("{}b", var("TEST_STACK_PROJECT"));
        let mut stack =
            Self::named(&project, &["-f", "docker-compose.yml"], &var("TEST_STACK_PORT_2"), 11000, "10.231.17.0/24");
        // So that its sweep comes at once.
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

    /// A new key of a tenant, with all scopes.
    #[track_caller]
    pub fn key(&self, tenant: &str) -> String {
        let create = ["keys", "create", "--tenant", tenant, "--name", "test", "--scope", "admin"];
        let said = self.compose(&[&["run", "--rm", "--no-deps", "-T", "api"][..], &create].concat());
        said.trim().to_owned()
    }

    /// The ids of a service's containers; `all`: also of those that have ended.
    pub fn containers(&self, service: &str, all: bool) -> Vec<String> {
        let project = format!("label=com.docker.compose.project={}", self.project);
        let named = format!("label=com.docker.compose.service={service}");
        let once = "label=com.docker.compose.oneoff=False";
        let mut args = vec!["ps", "-q", "--no-trunc", "-f", &project, "-f", &named, "-f", once];
        args.extend(all.then_some("-a"));
        docker(&args).split_whitespace().map(str::to_owned).collect()
    }

    /// The only one.
    #[track_caller]
    pub fn container(&self, service: &str) -> String {
        let all = self.containers(service, true);
        let [one] = all.as_slice() else { panic!("{service}: {all:?}") };
        one.clone()
    }

    /// A container's address in `front` or `back`.
    #[track_caller]
    pub fn address(&self, container: &str, network: &str) -> String {
        let name = format!("{}_{network}", self.project);
        inspect(container)["NetworkSettings"]["Networks"][name]["IPAddress"].as_str().unwrap().to_owned()
    }

    /// The lines of nginx's log that are JSON.
    pub fn nginx_log(&self) -> Vec<Value> {
        let log = docker(&["logs", &self.container("nginx")]);
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Which replicas had the requests whose id begins so: an address each time.
    pub fn asked(&self, id: &str) -> Vec<String> {
        let begins = |line: &&Value| line["request_id"].as_str().is_some_and(|text| text.starts_with(id));
        self.nginx_log().iter().filter(begins).map(|line| line["upstream"].as_str().unwrap().to_owned()).collect()
    }

    /// SQL in a server, as its superuser.
    #[track_caller]
    pub fn sql(&self, service: &str, statement: &str) -> String {
        let container = self.container(service);
        docker(&["exec", "-u", "postgres", &container, "psql", "-XAtq", "app", "-c", statement]).trim().to_owned()
    }

    /// All healthy, and this many replicas in nginx's turn.
    pub async fn settled(&self, replicas: usize) {
        crate::eventually(180, "healthy", async || {
            let mut bad = Vec::new();
            for service in ["api", "worker", "nginx", "postgres", "replica", "redis", "prometheus"] {
                for container in self.containers(service, true) {
                    let health = inspect(&container)["State"]["Health"]["Status"].clone();
                    if health != "healthy" {
                        bad.push(format!("{service} {health}"));
                    }
                }
            }
            let turn = self.in_turn();
            if bad.is_empty() && turn == replicas { Ok(()) } else { Err(format!("{bad:?}, nginx has {turn}")) }
        })
        .await;
    }

    /// How many replicas nginx knows.
    pub fn in_turn(&self) -> usize {
        let said = docker(&["exec", &self.container("nginx"), "cat", "/tmp/upstream.conf"]);
        said.matches("server ").count()
    }

    /// What went before a failure.
    pub fn tell_logs(&self) {
        let said =
            self.try_compose(&["logs", "--no-color", "--tail=15", "worker", "postgres", "replica", "redis", "migrate"]);
        eprintln!("{}", String::from_utf8_lossy(&said.stdout));
        let said = self.try_compose(&["logs", "--no-color", "--tail=300", "nginx"]);
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let wrong = text.lines().filter(|line| !line.contains("\"status\":2")).collect::<Vec<_>>();
        eprintln!("{}", wrong.join("\n"));
    }

    /// As `make down ARGS=-v` does it; then nothing of it is left.
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
    /// After a panic.
    fn drop(&mut self) {
        if self.is_down.load(Relaxed) {
            return;
        }
        self.try_compose(&["stop", "nginx", "api", "worker"]);
        self.try_compose(PURGE);
        self.try_compose(&["down", "-v", "--remove-orphans", "-t", "5"]);
    }
}

/// Standard output of `docker …`; it must succeed.
#[track_caller]
pub fn docker(args: &[&str]) -> String {
    succeeded(&format!("docker {}", args.join(" ")), Command::new("docker").args(args).output().unwrap())
}

/// Whether `docker …` succeeds.
pub fn docker_does(args: &[&str]) -> bool {
    Command::new("docker").args(args).output().unwrap().status.success()
}

#[track_caller]
pub fn inspect(name: &str) -> Value {
    let said: Value = serde_json::from_str(&docker(&["inspect", name])).unwrap();
    said[0].clone()
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

/// An instance's first page. `running` promises a process and its published port; to listen, the process needs a moment.
pub async fn first_page(instance: &Value) -> String {
    let mut first = String::new();
    crate::eventually(60, "the first page", async || page(instance).await.map(|page| first = page)).await;
    first
}

/// An instance's page.
pub async fn page(instance: &Value) -> Result<String, reqwest::Error> {
    let port = instance["ports"][0]["host"].as_u64().unwrap();
    let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).build().unwrap();
    http.get(format!("http://127.0.0.1:{port}/")).send().await?.error_for_status()?.text().await
}
