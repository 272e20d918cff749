//! What a response says about its connection is true: after `Connection: close` nothing that follows is processed,
//! whatever is still on its way, and an offer of an upgrade changes neither the request nor where the next one begins.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use actix_web::{HttpResponse, web};
use app::http::listener;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use super::{problem::problem, raw};
use crate::support::{Answer, Client, Cluster, poll_until};

/// Follows each request here on the same connection.
const SECOND: &str = "GET /health/live HTTP/1.1\r\nHost: api\r\nX-Request-Id: second\r\n\r\n";

/// Returns a request that leaves the connection open. An empty `key`: without one.
fn request(key: &str, line: &str, headers: &str, body: &str) -> String {
    let key = if key.is_empty() { String::new() } else { format!("X-API-Key: {key}\r\n") };
    format!("{line} HTTP/1.1\r\nHost: api\r\n{key}{headers}\r\n{body}")
}

/// Returns a request whose body has its length in the head.
fn sized(key: &str, line: &str, headers: &str, body: &str) -> String {
    request(key, line, &format!("{headers}Content-Length: {}\r\n", body.len()), body)
}

fn chunked(key: &str, line: &str, headers: &str, body: &str) -> String {
    let headers = format!("{headers}Transfer-Encoding: chunked\r\n");
    request(key, line, &headers, &format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()))
}

fn says_close(answer: &Answer) -> bool {
    answer.header("connection").eq_ignore_ascii_case("close")
}

/// Asserts that the first of two requests has this status, and that the second is served exactly when the first
/// response did not say `close`.
#[track_caller]
fn assert_consistent(what: &str, status: u16, answers: &[Answer]) {
    let first = answers.first().unwrap_or_else(|| panic!("{what}: no answer"));
    assert_eq!(first.status, status, "{what}: {}", first.text);
    assert_eq!(answers.len(), if says_close(first) { 1 } else { 2 }, "{what}: {answers:?}");
    if let [_, second] = answers {
        assert_eq!((second.status, second.header("x-request-id")), (200, "second"), "{what}");
    }
}

const JSON: &str = "Content-Type: application/json\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn connection_close_is_sent_exactly_when_nothing_more_is_served() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();

    let key = client.key.as_str();
    let by_id = format!("DELETE /instances/{}", client.post("/instances", json!({"image": "web:1"})).await.instance());
    let limits = json!({"name": "k", "scopes": ["keys:read"], "limits": {"rps": 0.001, "burst": 1}});
    let made = client.post("/keys", limits).await.expect(201).body;
    let limited = client.with_key(made["key"].as_str().unwrap());
    limited.get("/keys/self").await.expect(200);

    let huge = "x".repeat(2 * 1024 * 1024);
    for (line, key, headers, body, status) in [
        ("GET /health/live", "", "", "hello", 200),
        ("GET /openapi.json", "", "", "hello", 200),
        ("GET /instances", key, "", "hello", 200),
        (&by_id, key, JSON, "{}", 202),
        ("POST /instances", "", JSON, "{}", 401),
        ("POST /instances", "cpk_live_1_forged", JSON, "{}", 401),
        ("POST /nope", key, JSON, "{}", 404),
        ("PUT /instances", key, JSON, "{}", 405),
        ("POST /health/live", "", "", "hello", 405),
        ("POST /instances", key, JSON, &huge, 413),
        ("POST /instances", key, "", "hello", 415),
        ("POST /instances", key, JSON, "{}", 422),
        ("POST /keys", &limited.key, JSON, "{}", 429),
    ] {
        for (form, request) in
            [("sized", sized(key, line, headers, body)), ("chunked", chunked(key, line, headers, body))]
        {
            let what = format!("{line}, {form}, {status}");
            let mut stream = raw::connect(&client).await;
            // The server may have closed the connection before it has read everything.
            let _ = stream.write_all((request + SECOND).as_bytes()).await;
            assert_consistent(&what, status, &raw::read_all(&mut stream, 2).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn response_before_the_body_arrives_closes_the_connection() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    // A page of a megabyte: it is still being sent when the rest of the body arrives.
    let env = json!({"A": "x".repeat(30_000), "B": "x".repeat(30_000)});
    for _ in 0..20 {
        client.post("/instances", json!({"image": "web:1", "env": env})).await.instance();
    }
    for (line, key, status) in [
        ("GET /health/live", "", 200),
        ("POST /instances", "", 401),
        ("PUT /instances", client.key.as_str(), 405),
        ("GET /instances?limit=500", client.key.as_str(), 200),
    ] {
        for (form, request, rest) in [
            ("sized", request(key, line, "Content-Length: 10\r\n", "hello"), "world"),
            (
                "chunked",
                request(key, line, "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n"),
                "5\r\nworld\r\n0\r\n\r\n",
            ),
        ] {
            let what = format!("{line}, {form}");
            let mut stream = small_receiver(&client).await;
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut first = vec![0; 12];
            stream.read_exact(&mut first).await.unwrap();
            let _ = stream.write_all((rest.to_owned() + SECOND).as_bytes()).await;

            let mut bytes = first;
            let _ = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut bytes)).await.expect(&what);

            let text = String::from_utf8(bytes).unwrap();
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {text:.300}");
            assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{what}: another answer came after the last one");
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains("connection: close\r\n"), "{what}: {head}");
            assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{what}: it was cut off: {head}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_after_connection_close_are_not_processed() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let create = sized(&client.key, "POST /instances", JSON, "{\"image\":\"web:1\"}");
    for headers in ["Connection: close\r\n", "Connection: Upgrade\r\nUpgrade: h2c\r\n"] {
        for (path, key) in [("GET /health/live", ""), ("GET /instances", client.key.as_str())] {
            let mut stream = raw::connect(&client).await;
            stream.write_all((request(key, path, headers, "") + &create).as_bytes()).await.unwrap();

            let answers = raw::read_all(&mut stream, 2).await;

            assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200], "{path} {headers}");
            assert!(says_close(&answers[0]), "{:?}", answers[0].headers);
        }
    }
    assert_eq!(client.get("/instances").await.expect(200).body["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn offered_upgrades_are_ignored() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let key = client.key.as_str();
    let create = sized(key, "POST /instances", JSON, "{\"image\":\"web:1\"}");
    let mut created = 0;
    for offer in [
        "Connection: Upgrade\r\nUpgrade: websocket\r\n",
        "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n",
        "Upgrade: websocket\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
        "Connection: Upgrade\r\n",
    ] {
        let headers = format!("{JSON}{offer}");
        for (first, status) in [
            (sized(key, "POST /keys", &headers, "{}"), 422),
            (chunked(key, "POST /keys", &headers, "{}"), 422),
            (request(key, "POST /keys", &headers, ""), 400),
            (sized("", "POST /keys", &headers, "{}"), 401),
            (request(key, "GET /keys/self", &headers, ""), 200),
        ] {
            let mut stream = raw::connect(&client).await;
            let sent = Instant::now();
            stream.write_all((first.clone() + &create).as_bytes()).await.unwrap();

            let answers = raw::read_all(&mut stream, 2).await;

            // It used to be the timeout of a body, ten seconds.
            assert!(sent.elapsed() < Duration::from_secs(8), "{first}: {:?}", sent.elapsed());
            assert_eq!(answers[0].status, status, "{first}: {}", answers[0].text);
            let served = answers.get(1).map(|answer| answer.status);
            assert_eq!(served, (!says_close(&answers[0])).then_some(202), "{first}: {answers:?}");
            created += answers.len() - 1;
        }
    }
    let instances = client.get("/instances?limit=500").await.expect(200).body["items"].as_array().unwrap().len();
    assert_eq!(instances, created, "as many as were answered");
}

/// Opens a connection whose client's kernel buffers little that the client has not read.
async fn small_receiver(client: &Client) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    socket.connect(client.base.trim_start_matches("http://").parse().unwrap()).await.unwrap()
}

/// Returns whether the server's end of a connection is established, by the kernel's table.
fn is_established(stream: &TcpStream) -> bool {
    let (local, peer) = (stream.peer_addr().unwrap().port(), stream.local_addr().unwrap().port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let ends = (format!(":{local:04X}"), format!(":{peer:04X}"));
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1].ends_with(&ends.0) && fields[2].ends_with(&ends.1) && fields[3] == "01"
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_stops_reading_is_closed_and_a_slow_one_is_not() {
    const ANSWERS: usize = 16;
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();

    let env = json!({"A": "x".repeat(30_000), "B": "x".repeat(30_000)});
    for _ in 0..20 {
        client.post("/instances", json!({"image": "web:1", "env": env})).await.instance();
    }
    // More than both kernels buffer.
    let page = request(&client.key, "GET /instances?limit=500", "", "");
    let submit = async || {
        let mut stream = small_receiver(&client).await;
        stream.write_all(page.repeat(ANSWERS).as_bytes()).await.unwrap();
        stream
    };
    let stalled = async {
        let mut stream = submit().await;
        let mut first = [0; 1024];
        stream.read_exact(&mut first).await.unwrap();
        let stopped = Instant::now();
        poll_until("the end of a connection that is not read", Duration::from_secs(60), async || {
            (!is_established(&stream)).then_some(())
        })
        .await;
        assert!(stopped.elapsed() > Duration::from_secs(25), "{:?}", stopped.elapsed());
        let mut rest = Vec::new();
        let end = stream.read_to_end(&mut rest).await;
        assert!(end.is_err() || rest.len() < 1024 * 1024, "{} bytes came all the same", rest.len());
    };
    let slow = async {
        let (mut stream, began) = (submit().await, Instant::now());
        let (mut text, mut pace) = (Vec::new(), tokio::time::interval(Duration::from_millis(150)));
        let all_there = |text: &[u8]| text.ends_with(b"}") && raw::answers(text).len() == ANSWERS;
        // 64 KiB at a time.
        while !all_there(&text) {
            pace.tick().await;
            let until = text.len() + 64 * 1024;
            while text.len() < until && !all_there(&text) {
                let n = stream.read_buf(&mut text).await.expect("a slow reader is not cut");
                assert!(n > 0, "closed after {} bytes", text.len());
            }
        }
        // Longer than the server waits for a client that has stopped reading.
        assert!(began.elapsed() > Duration::from_secs(32), "{:?}: too fast to show anything", began.elapsed());
    };

    tokio::join!(stalled, slow);
}

#[tokio::test(flavor = "multi_thread")]
async fn panicking_handler_returns_500_and_keeps_its_connection() {
    async fn panics(path: web::Path<String>) -> HttpResponse {
        // After a turn of the executor, too.
        if *path == "later" {
            tokio::task::yield_now().await;
        }
        panic!("a bug in the route {path}")
    }
    let metrics = PrometheusBuilder::new().install_recorder().unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let server = listener::serve(socket, 1, Duration::ZERO, |config| {
        config.route("/bug/{when}", web::to(panics)).route("/fine", web::to(HttpResponse::Ok));
    });
    let server = server.unwrap();
    let handle = server.handle();
    let serving = tokio::spawn(server);
    let mut stream = TcpStream::connect(address).await.unwrap();
    for path in ["/bug/now", "/bug/later"] {
        let id = format!("panic-{}", &path[5..]);
        let bug =
            request("", &format!("POST {path}"), &format!("X-Request-Id: {id}\r\nContent-Length: 5\r\n"), "hello");
        let mut bug_stream = TcpStream::connect(address).await.unwrap();
        bug_stream.write_all((bug + SECOND).as_bytes()).await.unwrap();
        let answers = raw::read_all(&mut bug_stream, 2).await;
        problem(&answers[0], "internal");
        assert_eq!(answers.len(), if says_close(&answers[0]) { 1 } else { 2 }, "{answers:?}");
        assert_eq!(answers[0].header("x-request-id"), id);
        assert!(!answers[0].text.contains("bug"), "{}", answers[0].text);

        // On one connection, and so on one thread, with the requests before and after it.
        let get = request("", &format!("GET {path}"), "", "");
        stream.write_all(get.as_bytes()).await.unwrap();
    }
    stream.write_all(request("", "GET /fine", "", "").as_bytes()).await.unwrap();
    let answers = raw::read_all(&mut stream, 3).await;
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [500, 500, 200]);
    let counted = metrics.render();
    for method in ["GET", "POST"] {
        let line = format!("http_requests_total{{method=\"{method}\",route=\"/bug/{{when}}\",status=\"500\"}} 2");
        assert!(counted.contains(&line), "{counted}");
    }
    handle.stop(false).await;
    serving.await.unwrap().unwrap();
}
