//! Metrics of real processes after real work: every metric has a help text, none is missing, no label grows with what
//! tenants do, and the rules and the dashboard use only metrics that exist.

mod ages;
mod exposition;

use std::{
    collections::BTreeMap,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use app::telemetry::metrics::{Kind, METRICS, Metric};
use reqwest::Method;
use serde_json::json;

use self::exposition::{Family, faults, new_series, parse};
use crate::support::{App, Client, Cluster, client::send, env, poll_until};

const RULES: &str = "docker/prometheus/rules.yml";
const DASHBOARD: &str = "docker/grafana/dashboards/app.json";

/// An API and a worker that have done some of everything.
struct Load {
    _api: App,
    _worker: App,
    client: Client,
    worker_base: String,
    cluster: Cluster,
}

impl Load {
    async fn new() -> Self {
        let cluster = Cluster::simulated().await;
        let (api, client) = cluster.serve();
        let worker = cluster.spawn("work");
        let worker_base = listening(&worker);
        Self { cluster, client, worker_base, _api: api, _worker: worker }
    }

    /// Sends requests of all kinds under new names and ids: creates, reads, lists, fails and deletes.
    async fn walk(&self, n: usize) {
        let client = self.client.with_key(&self.cluster.key(&format!("tenant-{n}"), "admin"));
        let image = &self.cluster.image;
        let made = client.create_running(json!({"name": format!("walk-{n}"), "image": image})).await;
        let id = made["id"].as_str().unwrap();
        client.get("/instances").await.expect(200);
        client.get(&format!("/instances/{}", uuid::Uuid::now_v7())).await.expect(404);
        client.get(&format!("/jobs?instance={id}")).await.expect(200);
        client.get(&format!("/no/such/{n}?page={n}")).await.expect(404);
        client.post("/instances", json!({"image": ""})).await.expect(422);
        send(client.anonymous(Method::GET, "/instances").header("X-API-Key", format!("wrong-{n}"))).await.expect(401);
        let key = client.post("/keys", json!({"name": format!("key-{n}"), "scopes": ["keys:read"]})).await.expect(201);
        client.with_key(key.body["key"].as_str().unwrap()).get("/keys/self").await.expect(200);
        client.delete(&format!("/keys/{}", key.body["id"].as_str().unwrap())).await.expect(204);
        client.delete_fully(id).await;
    }

    async fn scrape(&self) -> (String, String) {
        let text = async |base: &str| reqwest::get(format!("{base}/metrics")).await.unwrap().text().await.unwrap();
        (text(&self.client.base).await, text(&self.worker_base).await)
    }
}

/// Returns the address of the worker's own listener.
fn listening(worker: &App) -> String {
    let line = worker.line("the worker's health and metrics listen");
    format!("http://{}", line.rsplit("address=").next().unwrap().trim())
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_help_and_do_not_grow_with_tenants() {
    let load = Load::new().await;
    for n in 0..3 {
        load.walk(n).await;
    }
    // Gauges are set every five seconds; after that, everything is there that these requests can produce.
    let expected = [
        "identity_l1_entries",
        "db_pool_max",
        "queue_jobs",
        "worker_slots",
        "host_cpu_committed_cores",
        "process_cpu_seconds_total",
    ];
    let before = poll_until("all gauges are set", Duration::from_secs(60), async || {
        let (api, worker) = load.scrape().await;
        let both = (parse(&api), parse(&worker));
        let has = |name: &&str| both.0.contains_key(*name) || both.1.contains_key(*name);
        expected.iter().all(has).then_some(both)
    })
    .await;
    let both: BTreeMap<String, &Family> = before.0.iter().chain(&before.1).map(|(name, f)| (name.clone(), f)).collect();
    assert_eq!([faults(&before.0), faults(&before.1)].concat(), [""; 0]);
    for (name, family) in &both {
        let kind = METRICS.iter().find(|metric| metric.name == name).map(|metric| metric.kind);
        let said = match family.kind.as_str() {
            "counter" => Kind::Counter,
            "gauge" => Kind::Gauge,
            "histogram" => Kind::Histogram,
            other => panic!("{name} is a {other}"),
        };
        assert!(
            kind == Some(said) || name.starts_with("process_"),
            "{name}, a {said:?}, is not so in the list of metrics"
        );
    }
    for name in [
        "http_requests_total",
        "http_request_seconds",
        "identity_verify_total",
        "identity_verify_seconds",
        "identity_cache_fill_total",
        "identity_l1_entries",
        "identity_l1_fence_age_seconds",
        "identity_feed_age_seconds",
        "identity_revoke_seconds",
        "identity_revoke_pending",
        "identity_outbox_oldest_seconds",
        "identity_redis_breaker_state",
        "db_pool_max",
        "db_pool_size",
        "db_pool_available",
        "db_pool_waiting",
        "db_checkout_seconds",
        "db_query_seconds",
        "db_read_routed_total",
        "queue_notifications_total",
        "queue_jobs",
        "queue_oldest_due_seconds",
        "job_wait_seconds",
        "job_attempt_seconds",
        "jobs_ended_total",
        "instance_provisioning_seconds",
        "worker_slots",
        "host_containers",
        "host_cpu_committed_cores",
        "host_memory_committed_bytes",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_open_fds",
    ] {
        assert!(both.contains_key(name), "{name} is missing");
    }

    // Ten times as many requests add no series, except that a status or an outcome may occur for the first time.
    for n in 3..30 {
        load.walk(n).await;
    }
    let (api, worker) = load.scrape().await;
    for (before, after) in [(&before.0, parse(&api)), (&before.1, parse(&worker))] {
        let new = new_series(before, &after);
        assert!(new.len() < 10, "27 walks brought {} series:\n{}", new.len(), new.join("\n"));
        let all: usize = after.values().map(|family| family.series.len()).sum();
        assert!(all < 300, "{all} series");
    }
}

/// Scrapes of processes at work pass Prometheus' own checker.
#[tokio::test(flavor = "multi_thread")]
async fn promtool_accepts_metrics_and_rules() {
    let Some(promtool) = env::promtool("promtool_accepts_metrics_and_rules") else { return };
    let load = Load::new().await;
    load.walk(0).await;
    let (api, worker) = load.scrape().await;
    for text in [&api, &worker] {
        let (ok, said) = check(&promtool, &["check", "metrics"], text);
        assert!(ok && said.is_empty(), "{said}");
    }
    // The control: the checker does report a fault.
    let (_, said) = check(&promtool, &["check", "metrics"], "# TYPE requests_count counter\nrequests_count 1\n");
    assert!(said.contains("no help text"), "{said}");

    let (ok, said) = check(&promtool, &["check", "rules", "--lint-fatal", RULES], "");
    assert!(ok, "{said}");
}

fn check(promtool: &Path, arguments: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new(promtool)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn list_of_metrics_is_its_snapshot() {
    let lines = METRICS.iter().map(|Metric { kind, name, help }| format!("{name} ({kind:?})\n  {help}\n"));

    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("metrics", lines.collect::<String>());
    });
}

#[test]
fn help_of_every_metric_is_a_sentence() {
    for Metric { kind, name, help } in METRICS {
        let verb = match kind {
            Kind::Counter => "Counts ",
            Kind::Gauge => "Shows ",
            Kind::Histogram => "Measures ",
        };
        assert!(help.starts_with(verb) && help.ends_with('.'), "{name}: {help}");
        let unit = name.trim_end_matches("_total").rsplit('_').next().unwrap_or_default();
        assert!(!["seconds", "bytes", "cores"].contains(&unit) || help.contains(unit), "{name}: {help}");
    }
}

/// A name that was changed in one place only gives an empty graph, or an alarm that never fires.
#[test]
fn rules_and_dashboard_use_only_existing_metrics() {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let owned =
        ["http_", "identity_", "db_", "queue_", "job_", "jobs_", "instance_", "worker_", "host_", "rate_limit_"];
    let read = |path| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let (rules, dashboard) = (read(RULES), read(DASHBOARD));
    let document: serde_json::Value = serde_json::from_str(&dashboard).unwrap();

    assert!(document["panels"].as_array().unwrap().len() >= 10);

    let mut used = 0;
    for word in rules.split(|c| !is_word(c)).chain(dashboard.split(|c| !is_word(c))) {
        let is_ours = owned.iter().any(|prefix| word.starts_with(prefix)) && !word.contains(':');
        let is_known = |metric: &Metric| {
            let part = word.strip_prefix(metric.name);
            part == Some("") || metric.kind == Kind::Histogram && matches!(part, Some("_bucket" | "_sum" | "_count"))
        };
        assert!(!is_ours || METRICS.iter().any(is_known), "{word} is no metric");
        used += usize::from(is_ours);
        // A rule that uses a recorded series needs the rule that records it.
        let recorded = !word.contains(':') || !word.starts_with("app:") || rules.contains(&format!("record: {word}\n"));
        assert!(recorded, "{word} is recorded nowhere");
    }

    assert!(used > 30, "only {used} uses were found");
}
