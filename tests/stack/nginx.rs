//! Responses, limits and log lines of nginx itself.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::{Answer, send},
    poll_until,
    stack::{Stack, demo_image, docker, docker_succeeds, inspect},
};

/// Checks that a response of nginx itself is a problem document like the API's.
#[track_caller]
fn problem(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code()), (status, code), "{}", answer.text);
    assert_eq!(answer.header("Content-Type"), "application/problem+json");
    assert_eq!(answer.body["status"], status);
    assert_eq!(answer.body["type"], "about:blank");
    assert!(answer.body["title"].is_string() && answer.body["detail"].is_string(), "{}", answer.text);
    assert_eq!(answer.body["request_id"], answer.header("X-Request-Id"));
}

pub async fn metrics_are_not_public(stack: &Stack) {
    for path in ["/metrics", "/metrics?x=1", "//metrics", "/health/../metrics", "/%6detrics"] {
        // A raw request, because an HTTP client would normalize the path.
        let response = raw(address(stack), &format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"));
        assert!(
            response.starts_with("HTTP/1.1 404 ") && response.contains("\"code\":\"not_found\""),
            "{path}: {response}"
        );
        assert!(!response.contains("http_requests_total"), "{path}: {response}");
    }
    problem(&send(stack.client.request(Method::GET, "/metrics")).await, 404, "not_found");
}

pub async fn request_id_is_forwarded_or_generated(stack: &Stack) {
    let request = |id: &str| send(stack.client.request(Method::GET, "/keys/self").header("X-Request-Id", id));
    assert_eq!(request("mine-1.B_c").await.header("X-Request-Id"), "mine-1.B_c");
    let made = send(stack.client.request(Method::GET, "/keys/self")).await;
    assert_eq!(made.header("X-Request-Id").len(), 32, "{made:?}");
    let invalid = request("not \"valid\"").await;
    assert_eq!(invalid.header("X-Request-Id").len(), 32, "{invalid:?}");
    // The problem documents of the API contain the request id that nginx logs.
    let missing = stack.client.get("/nothing").await.expect(404);
    assert_eq!(missing.body["request_id"], missing.header("X-Request-Id"));
    poll_until(60, "the request is in the log of nginx", async || {
        match stack.served_by(missing.header("X-Request-Id")).len() {
            1 => Ok(()),
            lines => Err(lines),
        }
    })
    .await;
}

pub async fn errors_of_nginx_are_problem_json(stack: &Stack) {
    let large = stack.client.request(Method::POST, "/instances").header("Content-Type", "application/json");
    problem(&send(large.body("x".repeat(2 << 20))).await, 413, "payload_too_large");
    let header = stack.client.request(Method::GET, "/keys/self").header("X-Long", "x".repeat(40_000));
    problem(&send(header).await, 431, "malformed_request");
    let path = format!("/instances?label={}", "x".repeat(40_000));
    problem(&send(stack.client.request(Method::GET, &path)).await, 414, "malformed_request");
    let response = raw(address(stack), "NOT HTTP\r\n\r\n");
    assert!(response.contains(" 400 ") && response.contains("\"code\":\"malformed_request\""), "{response}");
    let end = "Host: h\r\nConnection: close\r\n\r\n";
    for (request, status, code) in [
        ("TRACE / HTTP/1.1\r\n", 405, "method_not_allowed"),
        ("CONNECT / HTTP/1.1\r\n", 405, "method_not_allowed"),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n", 400, "malformed_request"),
        ("GET / HTTP/3.0\r\n", 400, "malformed_request"),
    ] {
        let response = raw(address(stack), &format!("{request}{end}"));
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {response}");
        assert!(response.contains(&format!("\"code\":\"{code}\"")), "{request}: {response}");
        assert!(response.contains("application/problem+json"), "{request}: {response}");
        assert_eq!(response.contains("\r\nAllow: GET"), status == 405, "{request}: {response}");
    }
}

pub async fn http_1_0_and_upgrade_requests_are_served(stack: &Stack) {
    // Health checks of load balancers use HTTP/1.0.
    let health = raw(address(stack), "GET /health/ready HTTP/1.0\r\n\r\n");
    assert!(health.starts_with("HTTP/1.1 200 "), "{health}");
    let key = &stack.client.key;
    let post = format!(
        "POST /keys HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-API-Key: {key}\r\n\
         Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}GET /health/live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    );
    let both = raw(address(stack), &post);
    assert!(both.starts_with("HTTP/1.1 422 ") && both.contains("HTTP/1.1 200 "), "{both}");
}

pub async fn only_requests_without_a_key_are_rate_limited(stack: &Stack) {
    let started = Instant::now();
    let anonymous = (0..200).map(|_| send(stack.client.anonymous(Method::GET, "/keys/self")));
    let answers = futures_util::future::join_all(anonymous).await;
    let limited: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 429).collect();
    // The limit: a burst of 40 and one more, then 20 per second.
    let (passed, took) = (answers.len() - limited.len(), started.elapsed());
    assert!(passed as f64 <= 42.0 + 20.0 * took.as_secs_f64(), "{passed} passed in {took:?}");
    assert!(limited.len() > 20, "the requests were too slow to reach the limit: {passed} passed in {took:?}");
    assert!(answers.iter().all(|answer| answer.status == 429 || answer.status == 401));
    problem(limited[0], 429, "rate_limited");
    assert_eq!(limited[0].header("Retry-After"), "1");
    let known = (0..200).map(|_| stack.client.get("/keys/self"));
    for answer in futures_util::future::join_all(known).await {
        answer.expect(200);
    }
}

pub async fn access_log_is_json_without_secrets(stack: &Stack) {
    let bearer = stack.client.anonymous(Method::GET, "/instances?label=a=sesame").bearer_auth(&stack.client.key);
    send(bearer.header("X-Request-Id", "secretless-")).await.expect(200);
    let body = json!({"name": "sesame", "image": "nowhere/sesame:1", "colour": "sesame"});
    let post = stack.client.request(Method::POST, "/instances").header("X-Request-Id", "refused-").json(&body);
    send(post).await.expect(422);
    let read = || docker(&["logs", &stack.container("nginx")]);
    // nginx logs a request after the response was sent, and Docker passes the line on later.
    poll_until(60, "both requests are in the log of nginx", async || {
        let log = read();
        if ["secretless-", "refused-"].iter().all(|id| log.contains(id)) { Ok(()) } else { Err("not yet") }
    })
    .await;
    let log = read();
    let line = log.lines().find(|line| line.contains("secretless-")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["path"], &line["status"], &line["method"]), (&json!("/instances"), &json!(200), &json!("GET")));
    assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    assert!(!log.contains(&stack.client.key), "a key is in the log");
    assert!(!log.contains("sesame"), "data of a tenant is in the log");
}

/// Runs nginx in front of fake replicas that stream and close connections, which the real API cannot be made to do.
pub async fn streams_are_unbuffered_and_a_post_is_sent_once(stack: &Stack) {
    let fakes = Fakes::start(stack).await;
    let base = format!("http://{}", fakes.address);

    let started = Instant::now();
    let mut stream = reqwest::get(format!("{base}/stream")).await.unwrap();
    let first = stream.chunk().await.unwrap().unwrap();
    assert_eq!(
        (&first[..], started.elapsed() < Duration::from_secs(4)),
        (&b"a\n"[..], true),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(&stream.chunk().await.unwrap().unwrap()[..], b"b\n");
    assert!(started.elapsed() >= Duration::from_secs(5), "both chunks came at once, so the check shows nothing");

    // The header Upgrade is not passed to the replica.
    let offered = raw(
        &fakes.address,
        "GET /offered HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n",
    );
    assert!(offered.starts_with("HTTP/1.1 200 ") && offered.ends_with("\r\n\r\nno"), "{offered}");

    // Both replicas close the connection: nginx sends a GET to both, a POST or PATCH to one.
    let http = reqwest::Client::new();
    for (method, tried) in [(Method::GET, 2), (Method::POST, 1), (Method::PATCH, 1)] {
        let answer = send(http.request(method.clone(), format!("{base}/hang-up")).header("X-API-Key", "some")).await;
        problem(&answer, 502, "unavailable");
        assert_eq!(answer.header("Retry-After"), "1");
        assert_eq!(fakes.count_requests(&format!("{method} /hang-up")), tried, "{method}");
        // max_fails may have excluded one for fail_timeout. Waits until nginx uses both again.
        poll_until(30, "nginx uses both fakes", async || {
            let before = fakes.requests_per_fake("GET /ok");
            for _ in 0..2 {
                http.get(format!("{base}/ok")).send().await.map_err(|error| error.to_string())?;
            }
            let counts = fakes.requests_per_fake("GET /ok");
            if counts.iter().zip(&before).all(|(now, before)| now > before) {
                Ok(())
            } else {
                Err(format!("{counts:?}"))
            }
        })
        .await;
    }
}

struct Fakes {
    names: Vec<String>,
    network: String,
    address: String,
}

/// A fake replica: reads the head of a request, records it, and responds according to the path.
const FAKE: &str = r#"
cat >/fake <<'END'
#!/bin/sh
read -r method path version
offered=no
while read -r line && [ "${#line}" -gt 1 ]; do case $line in [Uu]pgrade:*) offered=yes ;; esac; done
echo "$method $path" >>/requests
ok() { printf 'HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n'; }
case $path in
/hang-up) ;;
/stream) ok; printf 'Transfer-Encoding: chunked\r\n\r\n2\r\na\n\r\n'; sleep 5; printf '2\r\nb\n\r\n0\r\n\r\n' ;;
/offered) ok; printf 'Content-Length: %s\r\n\r\n%s' "${#offered}" "$offered" ;;
*) ok; printf 'Content-Length: 2\r\n\r\nok' ;;
esac
END
chmod +x /fake
exec nc -ll -p 8080 -e /fake
"#;

impl Fakes {
    async fn start(stack: &Stack) -> Self {
        let network = format!("{}-edge", stack.project);
        docker(&["network", "create", &network]);
        let mut fakes = Self { names: Vec::new(), network, address: String::new() };
        for n in 1..=2 {
            let name = format!("{}-fake-{n}", stack.project);
            let options = ["run", "-d", "--name", &name, "--network", &fakes.network, "--network-alias", "api"];
            docker(&[&options[..], &[&demo_image(), "sh", "-c", FAKE]].concat());
            fakes.names.push(name);
        }
        // The same image, configuration and script as nginx in the stack.
        let details = inspect(&stack.container("nginx"));
        let name = format!("{}-edge", stack.project);
        let (network, image) = (fakes.network.clone(), details["Config"]["Image"].as_str().unwrap().to_owned());
        let mut run = vec!["run", "-d", "--name", &name, "--network", &network, "--user", "101:101", "--tmpfs", "/tmp"];
        run.extend(["-p", "127.0.0.1::8080"]);
        let mounts = details["Mounts"].as_array().unwrap().iter();
        let mounts = mounts.map(|mount| {
            format!("{}:{}:ro", mount["Source"].as_str().unwrap(), mount["Destination"].as_str().unwrap())
        });
        let mounts: Vec<String> = mounts.collect();
        run.extend(mounts.iter().flat_map(|mount| ["-v", mount]));
        docker(&[&run[..], &[&image, "sh", "/etc/nginx/app/start.sh"]].concat());
        fakes.names.push(name.clone());
        fakes.address = docker(&["port", &name, "8080"]).lines().next().unwrap().to_owned();
        let ok = format!("http://{}/ok", fakes.address);
        poll_until(60, "nginx serves in front of two fakes", async || {
            let knows_both =
                docker_succeeds(&["exec", &name, "sh", "-c", "[ $(grep -c server /tmp/upstream.conf) = 2 ]"]);
            match reqwest::get(&ok).await {
                Ok(answer) if answer.status() == 200 && knows_both => Ok(()),
                other => Err(format!("{knows_both} {other:?}")),
            }
        })
        .await;
        fakes
    }

    /// Returns how many such requests the two fakes received.
    fn count_requests(&self, request: &str) -> usize {
        self.requests_per_fake(request).iter().sum()
    }

    /// Returns how many such requests each fake received.
    fn requests_per_fake(&self, request: &str) -> [usize; 2] {
        [0, 1].map(|n| {
            let lines = docker(&["exec", &self.names[n], "cat", "/requests"]);
            lines.lines().filter(|line| *line == request).count()
        })
    }
}

impl Drop for Fakes {
    fn drop(&mut self) {
        for name in &self.names {
            docker_succeeds(&["rm", "-f", name]);
        }
        docker_succeeds(&["network", "rm", &self.network]);
    }
}

fn address(stack: &Stack) -> &str {
    stack.url.trim_start_matches("http://")
}

/// Sends the bytes and returns everything that is received.
fn raw(address: &str, request: &str) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).unwrap();
    response
}
