//! `POST /instances`: what a 202 guarantees, and what is refused when names, ports, addresses or a quota run out.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use futures_util::future;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::problem::problem;
use crate::support::{
    Answer, Client, Cluster,
    cluster::{base_url, connect},
    env, poll_until,
    proxy::Proxy,
    redis_server::RedisServer,
};

/// Sends `many` equal requests concurrently and returns the responses.
async fn at_once(client: &Client, many: usize, body: Value) -> Vec<Answer> {
    future::join_all((0..many).map(|_| client.post("/instances", body.clone()))).await
}

/// Asserts that `accepted` of them are 202 and all others are `code`, and returns the instances.
#[track_caller]
fn split(answers: Vec<Answer>, accepted: usize, code: &str) -> Vec<Value> {
    let (good, bad): (Vec<Answer>, Vec<Answer>) = answers.into_iter().partition(|answer| answer.status == 202);
    for answer in &bad {
        problem(answer, code);
    }
    assert_eq!(good.len(), accepted);
    good.into_iter().map(|answer| answer.body["instance"].clone()).collect()
}

fn distinct(instances: &[Value], pointer: &str) -> usize {
    instances.iter().map(|instance| instance.pointer(pointer).unwrap().to_string()).collect::<HashSet<_>>().len()
}

async fn count(cluster: &Cluster, table: &str) -> i64 {
    cluster.sql().await.query_one(&format!("select count(*) from {table}"), &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_request_is_shown_as_sent_by_every_replica_at_once() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let replica = cluster.spawn("serve");
    let replica = Client::new(&base_url(&replica), &client.key);

    let answer = client.post("/instances", json!({"image": "web:1"})).await.expect(202);
    let fields: Vec<&str> = answer.body.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["instance", "job_id"]);
    let instance = &answer.body["instance"];
    assert_eq!(answer.header("location"), format!("/instances/{}", answer.instance()));
    assert_eq!((answer.header("retry-after"), answer.header("idempotent-replayed")), ("1", ""));
    let id = uuid::Uuid::parse_str(&answer.instance()).unwrap();
    assert_eq!(id.get_version_num(), 7);
    let mut fields: Vec<&str> = instance.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = vec![
        "id",
        "name",
        "tenant_id",
        "image",
        "command",
        "env",
        "cpu_millis",
        "memory_mib",
        "network",
        "ports",
        "labels",
        "restart_policy",
        "placement",
        "status",
        "status_reason",
        "host",
        "job_id",
        "restart_count",
        "exit_code",
        "created_at",
        "updated_at",
        "started_at",
        "finished_at",
    ];
    fields.sort_unstable();
    expected.sort_unstable();
    assert_eq!(fields, expected);
    for (field, default) in [
        ("command", json!(null)),
        ("env", json!({})),
        ("cpu_millis", json!(100)),
        ("memory_mib", json!(128)),
        ("ports", json!([])),
        ("labels", json!({})),
        ("restart_policy", json!("no")),
        ("placement", json!({})),
        ("status", json!("pending")),
        ("status_reason", json!(null)),
        ("host", json!(null)),
        ("restart_count", json!(0)),
        ("exit_code", json!(null)),
        ("started_at", json!(null)),
        ("finished_at", json!(null)),
        ("job_id", json!(answer.job())),
    ] {
        assert_eq!(instance[field], default, "{field}");
    }
    assert_eq!(instance["network"]["name"], "default");
    let name = instance["name"].as_str().unwrap();
    assert!(
        !name.is_empty()
            && name.len() <= 63
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    );
    let created = instance["created_at"].as_str().unwrap();
    assert!(created.ends_with('Z'), "{created}");
    time::OffsetDateTime::parse(created, &time::format_description::well_known::Rfc3339).unwrap();

    let requested = json!({
        "name": "web-1", "image": "registry.example:5000/a/b:1.27@sha256:abc", "command": ["sh", "-c", "echo \"ü\" 'x' $A"],
        "env": {"K": "V", "EMPTY": "", "LINES": "a\nb", "snowman": "☃ 💩"}, "cpu_millis": 500, "memory_mib": 256, "network": "default",
        "ports": [{"container": 80, "host": 0, "protocol": "tcp"}, {"container": 53, "host": 0, "protocol": "udp"}],
        "labels": {"app": "web", "a/b": "c=d"}, "restart_policy": "on_failure", "placement": {"host": "h9", "labels": {"zone": "a"}},
    });
    let made = client.post("/instances", requested.clone()).await;
    let shown = &made.body["instance"];
    for (field, value) in requested.as_object().unwrap() {
        match field.as_str() {
            "network" => assert_eq!(shown["network"]["name"], *value),
            "ports" => {
                for (n, port) in value.as_array().unwrap().iter().enumerate() {
                    assert_eq!(shown["ports"][n]["container"], port["container"]);
                    assert_eq!(shown["ports"][n]["protocol"], port["protocol"]);
                    assert!(shown["ports"][n]["host"].as_u64().unwrap() > 0, "the 202 shows the port");
                }
            }
            _ => assert_eq!(shown[field], *value, "{field}"),
        }
    }
    // The network's id names the same network.
    let by_id =
        client.post("/instances", json!({"image": "web:1", "network": shown["network"]["id"]})).await.expect(202);
    assert_eq!(by_id.body["instance"]["network"]["name"], "default");

    // A read right after the 202, through any replica, shows the same instance.
    for n in 0..20 {
        let made = client.post("/instances", json!({"image": "web:1"})).await;
        let asker = [&client, &replica][n % 2];
        assert_eq!(asker.get(&format!("/instances/{}", made.instance())).await.expect(200).body, made.body["instance"]);
        let job = asker.get(&format!("/jobs/{}", made.job())).await.expect(200).body;
        assert_eq!(
            (&job["instance_id"], &job["status"], &job["kind"]),
            (&made.body["instance"]["id"], &json!("queued"), &json!("provision"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn name_is_taken_until_its_instance_is_deleted() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();

    let named = json!({"image": "web:1", "name": "web"});
    // Of twenty concurrent requests one gets the name.
    let instances = split(at_once(&client, 20, named.clone()).await, 1, "name_taken");
    let unplaced = instances[0]["id"].as_str().unwrap();
    for table in ["instances", "jobs", "addresses"] {
        assert_eq!(count(&cluster, table).await, 1, "{table}");
    }
    // Names of another tenant are independent.
    client.with_key(&cluster.key("rival", "admin")).post("/instances", named.clone()).await.instance();

    // The instance was never placed: it is deleted at once, and its name is free.
    assert_eq!(
        client.delete(&format!("/instances/{unplaced}")).await.expect(202).body["instance"]["status"],
        "deleted"
    );

    let _worker = cluster.work();
    let placed = client.create_running(named.clone()).await["id"].as_str().unwrap().to_owned();
    problem(&client.post("/instances", named.clone()).await, "name_taken");
    client.delete_fully(&placed).await;
    client.create_running(named).await;
    assert_eq!(client.get("/instances?name=web&status=deleted").await.body["items"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn host_ports_are_unique_and_exhaustion_takes_nothing_else() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("APP_PORT_RANGE", "30100-30104");
    let (_api, client) = cluster.serve();
    let port = |host: u16| json!({"image": "web:1", "ports": [{"container": 80, "host": host}]});
    for host in [1, 80, 30099, 30105, 65535] {
        assert_eq!(problem(&client.post("/instances", port(host)).await, "validation_failed"), ["/ports/0/host"]);
    }
    let fixed = split(at_once(&client, 10, port(30102)).await, 1, "port_taken");
    assert_eq!(fixed[0]["ports"][0]["host"], 30102);
    // The same number of the other protocol is another port.
    let udp = json!({"image": "web:1", "ports": [{"container": 80, "host": 30102, "protocol": "udp"}]});
    client.post("/instances", udp).await.instance();

    let more = split(at_once(&client, 20, port(0)).await, 4, "port_taken");
    assert_eq!(distinct(&more, "/ports/0/host"), 4);
    problem(&client.post("/instances", port(30100)).await, "port_taken");
    // Two ports are wanted and one is free: the request takes neither, and no address.
    client.delete(&format!("/instances/{}", more[0]["id"].as_str().unwrap())).await.expect(202);
    let (addresses, ports) = (count(&cluster, "addresses").await, count(&cluster, "published_ports").await);
    let two = json!({"image": "web:1", "ports": [{"container": 80}, {"container": 81}]});
    problem(&client.post("/instances", two).await, "port_taken");
    assert_eq!((count(&cluster, "addresses").await, count(&cluster, "published_ports").await), (addresses, ports));
    let last = client.post("/instances", port(0)).await.expect(202);
    assert_eq!(last.body["instance"]["ports"], more[0]["ports"], "the one that was given back");
    // Ports belong to the cluster, not to the tenant.
    problem(&client.with_key(&cluster.key("rival", "admin")).post("/instances", port(0)).await, "port_taken");
    // Instances without ports are not limited.
    client.post("/instances", json!({"image": "web:1"})).await.instance();
}

#[tokio::test(flavor = "multi_thread")]
async fn network_of_eight_addresses_holds_five_instances() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("APP_DEFAULT_CIDR", "10.201.7.8/29");
    let (_api, client) = cluster.serve();

    let five = split(at_once(&client, 20, json!({"image": "web:1"})).await, 5, "address_exhausted");
    let mut addresses: Vec<&str> =
        five.iter().map(|instance| instance["network"]["address"].as_str().unwrap()).collect();
    addresses.sort_unstable();
    // .8 is the network, .9 the gateway, .15 the broadcast address.
    assert_eq!(addresses, ["10.201.7.10", "10.201.7.11", "10.201.7.12", "10.201.7.13", "10.201.7.14"]);
    assert_eq!(distinct(&five, "/network/mac"), 5);

    for table in ["instances", "jobs", "addresses"] {
        assert_eq!(count(&cluster, table).await, 5, "{table}");
    }
    client.delete(&format!("/instances/{}", five[2]["id"].as_str().unwrap())).await.expect(202);

    let next = client.post("/instances", json!({"image": "web:1"})).await.expect(202);
    assert_eq!(next.body["instance"]["network"]["address"], five[2]["network"]["address"]);

    // Each tenant has a network of its own.
    client.with_key(&cluster.key("rival", "admin")).post("/instances", json!({"image": "web:1"})).await.instance();
}

#[tokio::test(flavor = "multi_thread")]
async fn quota_holds_under_concurrent_creates() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let sql = cluster.sql().await;
    let quota =
        async |set: &str| sql.batch_execute(&format!("update tenants set {set} where name = 'acme'")).await.unwrap();
    quota("max_instances = 7").await;
    let seven = split(at_once(&client, 20, json!({"image": "web:1"})).await, 7, "quota_exceeded");
    let id = seven[0]["id"].as_str().unwrap();
    client.delete(&format!("/instances/{id}")).await.expect(202);
    split(at_once(&client, 5, json!({"image": "web:1"})).await, 1, "quota_exceeded");
    client.with_key(&cluster.key("rival", "admin")).post("/instances", json!({"image": "web:1"})).await.instance();

    // Seven instances use 700 and 896 of it.
    let body = |cpu: u32, memory: u32| json!({"image": "web:1", "cpu_millis": cpu, "memory_mib": memory});
    quota("max_instances = null, max_cpu_millis = 1000").await;
    problem(&client.post("/instances", body(301, 128)).await, "quota_exceeded");
    quota("max_cpu_millis = null, max_memory_mib = 1000").await;
    problem(&client.post("/instances", body(100, 105)).await, "quota_exceeded");
    client.post("/instances", body(5000, 104)).await.instance();
    problem(&client.post("/instances", body(100, 6)).await, "quota_exceeded");
    quota("max_memory_mib = null").await;
    client.post("/instances", body(100, 128)).await.instance();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_accepted_as_fast_while_redis_is_down() {
    let mut redis = RedisServer::start();
    let mut cluster = Cluster::simulated().await;
    cluster.redis_url = redis.url();
    let (_api, client) = cluster.serve();

    client.post("/instances", json!({"image": "web:1"})).await.instance();
    let quick = async |what: &str| {
        for _ in 0..5 {
            let started = Instant::now();
            let made = client.post("/instances", json!({"image": "web:1"})).await;
            client.get(&format!("/instances/{}", made.instance())).await.expect(200);
            assert!(started.elapsed() < Duration::from_secs(4), "{what}: {:?}", started.elapsed());
        }
    };
    let ready = async || client.get("/health/ready").await.expect(200).body;

    assert_eq!(ready().await, json!({"status": "ready", "primary": true, "redis": true}));

    // A Redis that hangs is worse than one that is dead.
    redis.signal(Signal::SIGSTOP);
    quick("hanging").await;
    assert_eq!(ready().await, json!({"status": "degraded", "primary": true, "redis": false}));

    redis.signal(Signal::SIGCONT);
    redis.kill();
    quick("dead").await;
    assert_eq!(ready().await, json!({"status": "degraded", "primary": true, "redis": false}));

    let _worker = cluster.work();
    client.create_running(json!({"image": "web:1"})).await;
    redis.restart();
    poll_until("readiness", Duration::from_secs(60), async || (ready().await["status"] == "ready").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_get_503_and_never_401_while_postgres_is_down() {
    let mut cluster = Cluster::simulated().await;
    // A cached key would still be accepted: tests/it/identity shows that.
    cluster.set("IDENTITY_CACHE", "off");

    let direct = cluster.database_url.clone();
    let key = cluster.key("acme", "admin");
    let proxy = Proxy::start(&direct).await;
    cluster.database_url = proxy.url.clone();
    let api = cluster.spawn("serve");
    let client = Client::new(&base_url(&api), &key);

    client.get("/keys/self").await.expect(200);

    drop(proxy);
    let id = uuid::Uuid::now_v7();
    for path in ["/keys/self", "/instances", &format!("/instances/{id}"), "/jobs", "/nope"] {
        problem(&client.get(path).await, "unavailable");
    }
    problem(&client.post("/instances", json!({"image": "web:1"})).await, "unavailable");
    // Forged keys are detected without a query.
    problem(&client.with_key("cpk_live_nonsense").get("/instances").await, "unauthenticated");
    let ready = client.get("/health/ready").await.expect(503);

    assert_eq!((&ready.body["status"], &ready.body["primary"]), (&json!("unavailable"), &json!(false)));
    assert!(!ready.header("retry-after").is_empty());
    client.get("/health/live").await.expect(200);

    cluster.database_url = direct;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_recovers_without_a_restart_when_postgres_returns() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();

    client.get("/keys/self").await.expect(200);

    let admin = connect(&env::required("TEST_DATABASE_URL")).await;
    let name: String = cluster.sql().await.query_one("select current_database()", &[]).await.unwrap().get(0);
    admin.batch_execute(&format!("alter database {name} with allow_connections false")).await.unwrap();
    admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", &[&name]).await.unwrap();
    for _ in 0..10 {
        problem(&client.post("/instances", json!({"image": "web:1"})).await, "unavailable");
    }
    admin.batch_execute(&format!("alter database {name} with allow_connections true")).await.unwrap();
    poll_until("an answer", Duration::from_secs(60), async || {
        let answer = client.post("/instances", json!({"image": "web:1"})).await;
        assert!(matches!(answer.status, 202 | 503), "{}", answer.text);
        (answer.status == 202).then_some(())
    })
    .await;

    assert_eq!(count(&cluster, "instances").await, 1, "what was answered with 503 left nothing behind here");
}

#[tokio::test(flavor = "multi_thread")]
async fn create_under_a_quota_delays_only_other_creates() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let sql = cluster.sql().await;

    sql.execute("update tenants set max_instances = 5", &[]).await.unwrap();
    // As a create does that is not finished yet.
    sql.batch_execute("begin; select app_quota(id, 1, 1) from tenants").await.unwrap();
    client.post("/keys", json!({"name": "k", "scopes": ["admin"]})).await.expect(201);

    problem(&client.post("/instances", json!({"image": "web:1"})).await, "unavailable");
    sql.batch_execute("rollback").await.unwrap();
    client.post("/instances", json!({"image": "web:1"})).await.expect(202);
}

#[tokio::test(flavor = "multi_thread")]
async fn job_carries_the_id_of_its_request() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();

    let created = client.post("/instances", json!({"image": "web:1"})).await.expect(202);
    let deleted = client.delete(&format!("/instances/{}", created.instance())).await.expect(202);

    let sql = cluster.sql().await;
    for answer in [created, deleted] {
        let job: uuid::Uuid = answer.job().parse().unwrap();
        let row = sql.query_one("select request_id from jobs where id = $1", &[&job]).await.unwrap();
        assert_eq!(row.get::<_, Option<&str>>(0), Some(answer.header("x-request-id")));
    }
}
