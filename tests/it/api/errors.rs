//! All errors are problems, also those that the framework would return by itself.

use reqwest::Method;
use serde_json::json;
use uuid::Uuid;

use super::{
    problem::{CODES, problem},
    raw,
};
use crate::support::{Cluster, client::send};

const JSON: &str = "Content-Type: application/json\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_problems_with_a_documented_code() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let existing = client.post("/instances", json!({"image": "web:1"})).await.instance();
    let by_id = format!("/instances/{existing}");
    let unknown = Uuid::now_v7();

    // Bodies: an unreadable one is 400, a wrong one is 422 with its place.
    for (body, code, pointer) in [
        ("{", "malformed_request", None),
        ("", "malformed_request", None),
        ("{\"image\":\"a\"} {}", "malformed_request", None),
        ("{\"image\":1}", "validation_failed", Some("/image")),
        ("{}", "validation_failed", Some("/image")),
        ("{\"image\":\"a\",\"colour\":\"red\"}", "validation_failed", Some("/colour")),
        ("{\"image\":\"a\",\"ports\":[{\"container\":80,\"hots\":1}]}", "validation_failed", Some("/ports/0/hots")),
        ("{\"image\":\"a\",\"env\":{\"A/B~C\":1}}", "validation_failed", Some("/env/A~1B~0C")),
    ] {
        let request = client.request(Method::POST, "/instances").header("Content-Type", "application/json");
        let pointers = problem(&send(request.body(body)).await, code);
        assert_eq!(pointers.first().map(String::as_str), pointer, "{body}");
    }
    let all =
        json!({"name": "A", "image": "", "cpu_millis": 0, "restart_policy": "maybe", "ports": [{"container": 0}]});
    let pointers = problem(&client.post("/instances", all).await, "validation_failed");
    assert_eq!(pointers, ["/name", "/image", "/cpu_millis", "/ports/0/container", "/restart_policy"]);

    // Media types.
    for media_type in [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("nonsense")] {
        let request = client.request(Method::POST, "/instances").body("{\"image\":\"web:1\"}");
        let request = match media_type {
            Some(media_type) => request.header("Content-Type", media_type),
            None => request,
        };
        problem(&send(request).await, "unsupported_media_type");
    }
    let request = client.request(Method::POST, "/instances").header("Content-Type", "Application/JSON; charset=utf-8");
    assert_eq!(send(request.body("{\"image\":\"web:1\"}")).await.status, 202);

    // Sizes, declared or not.
    let huge = format!("{{\"image\":\"{}\"}}", "x".repeat(2 * 1024 * 1024));
    let request = client.request(Method::POST, "/instances").header("Content-Type", "application/json");
    problem(&send(request.body(huge.clone())).await, "payload_too_large");
    let mut chunked = raw::head(&client, "POST /instances", &format!("{JSON}Transfer-Encoding: chunked\r\n"));
    for chunk in huge.as_bytes().chunks(64 * 1024) {
        chunked.extend(format!("{:x}\r\n", chunk.len()).bytes());
        chunked.extend(chunk);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    problem(&raw::exchange(&client, &chunked).await, "payload_too_large");
    // A request that is refused for another reason is not read, and its client still gets the response.
    for (method, path, code) in
        [(Method::POST, "/instances", "unauthenticated"), (Method::POST, "/health/live", "method_not_allowed")]
    {
        for _ in 0..5 {
            problem(&send(client.anonymous(method.clone(), path).body(huge.clone())).await, code);
        }
    }
    for _ in 0..5 {
        problem(&send(client.request(Method::POST, "/nope").body(huge.clone())).await, "not_found");
        problem(&send(client.request(Method::PUT, "/instances").body(huge.clone())).await, "method_not_allowed");
    }
    // A body of exactly the limit is accepted: only the image in it is wrong.
    let largest = format!("{{\"image\":\"{}\"}}", "x".repeat(1024 * 1024 - 12));
    assert_eq!(largest.len(), 1024 * 1024);
    let request = client.request(Method::POST, "/instances").header("Content-Type", "application/json");
    assert_eq!(problem(&send(request.body(largest)).await, "validation_failed"), ["/image"]);

    // Methods.
    for (method, path, allowed) in [
        ("PUT", "/instances", &["GET", "HEAD", "POST"][..]),
        ("DELETE", "/instances", &["GET", "HEAD", "POST"]),
        ("OPTIONS", "/instances", &["GET", "HEAD", "POST"]),
        ("BREW", "/instances", &["GET", "HEAD", "POST"]),
        ("PUT", &by_id, &["GET", "HEAD", "DELETE"]),
        ("POST", "/jobs", &["GET", "HEAD"]),
        ("POST", "/keys/self", &["GET", "HEAD"]),
        ("POST", "/health/live", &["GET", "HEAD"]),
    ] {
        let answer = raw::exchange(&client, &raw::head(&client, &format!("{method} {path}"), "")).await;
        problem(&answer, "method_not_allowed");
        let allow: Vec<&str> = answer.header("allow").split(',').map(str::trim).collect();
        assert!(allowed.iter().all(|method| allow.contains(method)), "{method} {path}: {allow:?}");
        assert!(!allow.contains(&method), "{method} {path}: {allow:?}");
    }
    // On a public path every client gets 405 for a wrong method; on others a client without a key gets 401.
    problem(&send(client.anonymous(Method::POST, "/metrics")).await, "method_not_allowed");
    problem(&send(client.anonymous(Method::PUT, "/instances")).await, "unauthenticated");

    // Paths.
    for path in [
        "/",
        "/nope",
        "/instances/",
        "/instance",
        "/instances/nope",
        "/instances/%zz",
        "/instances/%ff",
        "/instances/%00",
        "/instances/%2e%2e",
        "//instances",
        "/INSTANCES",
        "/keys/not-a-uuid/x",
        "/jobs/1",
        "/networks/default",
        &format!("/instances/{unknown}"),
        &format!("/instances/{{{unknown}}}"),
        &format!("/instances/{}", unknown.simple()),
        &format!("/instances/urn:uuid:{unknown}"),
        &format!("/jobs/{unknown}"),
        &format!("/networks/{unknown}"),
        &format!("{by_id}/nope"),
        &format!("{by_id}%20"),
    ] {
        problem(&raw::exchange(&client, &raw::head(&client, &format!("GET {path}"), "")).await, "not_found");
        problem(&send(client.anonymous(Method::GET, path)).await, "unauthenticated");
    }
    for path in ["/instances/nope", "/instances/%zz", "/keys/nope", &format!("/keys/{unknown}")] {
        problem(&raw::exchange(&client, &raw::head(&client, &format!("DELETE {path}"), "")).await, "not_found");
    }

    // Queries.
    let wrong = "validation_failed";
    for (path, code, pointer) in [
        ("/instances?colour=red", wrong, Some("?colour")),
        ("/instances?limit=1&limit=2", wrong, Some("?limit")),
        ("/instances?name=a%00b", wrong, Some("?name")),
        ("/keys/self?x=1", wrong, Some("?x")),
        ("/jobs?colour", wrong, Some("?colour")),
        ("/networks?colour=", wrong, Some("?colour")),
        ("/keys?colour=", wrong, Some("?colour")),
        (&format!("{by_id}?colour=red"), wrong, Some("?colour")),
        ("/instances?name=%zz", "malformed_request", None),
        ("/instances?name=%", "malformed_request", None),
        ("/instances?name=%ff", "malformed_request", None),
        ("/instances?%f=1", "malformed_request", None),
    ] {
        let answer = raw::exchange(&client, &raw::head(&client, &format!("GET {path}"), "")).await;
        assert_eq!(problem(&answer, code).first().map(String::as_str), pointer, "{path}");
    }
    let answer = raw::exchange(&client, &raw::head(&client, &format!("DELETE {by_id}?colour=red"), "")).await;
    assert_eq!(problem(&answer, wrong), ["?colour"]);
    assert_eq!(client.get(&by_id).await.body["status"], "pending", "a refused DELETE deletes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn request_id_is_the_callers_when_it_is_valid() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();

    let longest = "x".repeat(128);
    for id in ["a", "abc-1.2_X", "0193f7a0-0000-7000-8000-000000000000", &longest] {
        for (path, key) in [("/instances", true), ("/nope", true), ("/instances", false), ("/health/live", false)] {
            let request = if key { client.request(Method::GET, path) } else { client.anonymous(Method::GET, path) };
            let answer = send(request.header("X-Request-Id", id)).await;
            assert_eq!(answer.header("x-request-id"), id, "{path}");
            assert!(answer.status == 200 || answer.body["request_id"] == id, "{path}: {}", answer.text);
        }
    }
    let mut given = std::collections::HashSet::new();
    for id in ["", "a b", "a/b", "<script>", "a\tb", "{}", &"x".repeat(129)] {
        let answer = send(client.request(Method::GET, "/nope").header("X-Request-Id", id)).await;
        problem(&answer, "not_found");
        let replaced = answer.header("x-request-id").to_owned();
        assert_ne!(replaced, id);
        assert!(Uuid::parse_str(&replaced).is_ok(), "{replaced}");
        assert!(given.insert(replaced), "each request has an id of its own");
    }

    // The response to HEAD is that to GET without the body.
    let answer = send(client.request(Method::HEAD, "/nope").header("X-Request-Id", "head-1")).await;

    assert_eq!((answer.status, answer.header("x-request-id"), answer.text.as_str()), (404, "head-1", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_http_is_refused_and_slow_bodies_delay_no_client() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    for garbage in
        ["GARBAGE\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET /instances HTTP/1.1\r\nA B: c\r\n\r\n", "\0\0\0\0\r\n\r\n"]
    {
        assert_eq!(raw::exchange(&client, garbage.as_bytes()).await.status, 400, "{garbage:?}");
    }
    let mut huge_head = raw::head(&client, "GET /instances", "");
    huge_head.truncate(huge_head.len() - 2);
    huge_head.extend(format!("X-Filler: {}\r\n\r\n", "x".repeat(1024 * 1024)).bytes());
    let status = raw::exchange(&client, &huge_head).await.status;
    assert!((400..500).contains(&status), "{status}");

    // Far more of them than threads or database connections.
    let mut slow = Vec::new();
    for _ in 0..200 {
        let mut stream = raw::connect(&client).await;
        let head = raw::head(&client, "POST /instances", &format!("{JSON}Content-Length: 17\r\n"));
        tokio::io::AsyncWriteExt::write_all(&mut stream, &head).await.unwrap();
        slow.push(stream);
    }
    let started = std::time::Instant::now();
    for _ in 0..10 {
        client.get("/instances").await.expect(200);
    }
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
    // They are slow, not wrong: one that finishes is served.
    let mut stream = slow.pop().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"{\"image\":\"web:1\"}").await.unwrap();
    assert_eq!(raw::read(stream).await.status, 202);
}

#[test]
fn code_and_documentation_list_the_same_problem_codes() {
    let built: Vec<(&str, u16)> =
        app::http::problem::Code::ALL.iter().map(|code| (code.as_str(), code.status())).collect();
    let sorted = |mut codes: Vec<(&'static str, u16)>| {
        codes.sort_unstable();
        codes
    };

    assert_eq!(sorted(built), sorted(CODES.to_vec()));

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md");
    let text = std::fs::read_to_string(path).unwrap();
    for (code, status) in CODES {
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with(&format!("| `{code}` |"))).collect();
        assert_eq!(rows.len(), 1, "{code}: {rows:?}");
        assert!(rows[0].starts_with(&format!("| `{code}` | {status} |")), "{code}: {rows:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strange_queries_and_headers_are_never_a_server_error() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();

    let id = client.post("/instances", json!({"image": "web:1"})).await.instance();
    let values = [
        "%27%22%5C",
        "%E2%80%AE",
        "%F0%9F%92%A9",
        "-1",
        "1e999",
        "NaN",
        "99999999999999999999999999",
        "null",
        "[]",
        "%7B%7D",
        "%0A%0D",
        "a%3Db",
        "%25",
        "..%2F..",
        "true",
        "inf",
        "-0",
        "%EF%BF%BF",
        "%C2%80",
    ];
    let parameters = [
        "limit",
        "cursor",
        "status",
        "name",
        "label",
        "network",
        "host",
        "tenant_id",
        "kind",
        "instance",
        "wait",
        "timeout",
    ];

    for path in ["/instances", "/jobs", "/networks", "/keys", &format!("/instances/{id}")] {
        let all = parameters.iter().flat_map(|parameter| values.iter().map(move |value| (parameter, value)));
        // A valid wait would take its time.
        for (parameter, value) in all {
            let quick = if path.contains(&id) && *parameter != "timeout" { "&timeout=0" } else { "" };
            let status = client.get(&format!("{path}?{parameter}={value}{quick}")).await.status;
            assert!(matches!(status, 200 | 422), "{path}?{parameter}={value}: {status}");
        }
    }
}

/// Postgres' text about a conflict names tables, columns and constraints.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_contain_no_text_of_postgres() {
    let mut cluster = Cluster::simulated().await;
    cluster.set("APP_PORT_RANGE", "30200-30203").set("APP_DEFAULT_CIDR", "10.201.9.8/29");
    let (_api, client) = cluster.serve();
    let sql = cluster.sql().await;
    let port = |host: u16, protocol: &str| json!({"container": 80, "host": host, "protocol": protocol});
    let submit = async |body: serde_json::Value| client.post("/instances", body).await;
    let taken = json!([port(30200, "tcp"), port(30201, "udp")]);
    submit(json!({"image": "web:1", "name": "web", "ports": taken})).await.expect(202);
    let quota =
        async |set: &str| sql.batch_execute(&format!("update tenants set {set} where name = 'acme'")).await.unwrap();

    let mut answers = Vec::new();
    for (ports, detail) in [
        (json!([port(30200, "tcp")]), "tcp port 30200 is taken"),
        (json!([port(30202, "tcp"), port(30201, "udp")]), "udp port 30201 is taken"),
        (json!([{"container": 81}, {"container": 82}, {"container": 83}, {"container": 84}]), "no host port is free"),
    ] {
        let answer = submit(json!({"image": "web:1", "ports": ports})).await;
        problem(&answer, "port_taken");
        assert_eq!(answer.body["detail"], detail);
        answers.push(answer);
    }
    answers.push(submit(json!({"image": "web:1", "name": "web"})).await);
    answers.push(submit(json!({"image": "web:1", "network": "elsewhere"})).await);
    for set in
        ["max_instances = 1", "max_instances = null, max_cpu_millis = 1", "max_cpu_millis = null, max_memory_mib = 1"]
    {
        quota(set).await;
        let answer = submit(json!({"image": "web:1"})).await;
        problem(&answer, "quota_exceeded");
        answers.push(answer);
    }
    quota("max_memory_mib = null").await;
    for _ in 0..4 {
        submit(json!({"image": "web:1"})).await.expect(202);
    }
    let exhausted = submit(json!({"image": "web:1"})).await;
    problem(&exhausted, "address_exhausted");
    answers.push(exhausted);
    let key = json!({"name": "k", "scopes": ["admin"], "tenant_id": Uuid::now_v7()});
    answers.push(client.post("/keys", key).await);

    let words =
        ["Key (", "constraint", "violates", "duplicate", "already exists", "relation", "_pkey", "published_ports"];
    for answer in answers {
        assert!((400..500).contains(&answer.status), "{}", answer.text);
        for word in words {
            assert!(!answer.text.contains(word), "{word}: {}", answer.text);
        }
    }
}
