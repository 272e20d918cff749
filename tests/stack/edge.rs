//! What nginx does by itself.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::{Answer, send},
    eventually,
    stack::{Stack, demo_image, docker, docker_does, inspect},
};

/// A problem of nginx's own: like the API's.
#[track_caller]
fn problem(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code()), (status, code), "{}", answer.text);
    assert_eq!(answer.header("Content-Type"), "application/problem+json");
    assert_eq!(answer.body["status"], status);
    assert_eq!(answer.body["type"], "about:blank");
    assert!(answer.body["title"].is_string() && answer.body["detail"].is_string(), "{}", answer.text);
    assert_eq!(answer.body["request_id"], answer.header("X-Request-Id"));
}

pub async fn metrics_are_for_the_inside(stack: &Stack) {
    for path in ["/metrics", "/metrics?x=1", "//metrics", "/health/../metrics", "/%6detrics"] {
        // By hand: a client would tidy the path.
        let said = raw(address(stack), &format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"));
        assert!(said.starts_with("HTTP/1.1 404 ") && said.contains("\"code\":\"not_found\""), "{path}: {said}");
        assert!(!said.contains("http_requests_total"), "{path}: {said}");
    }
    problem(&send(stack.client.request(Method::GET, "/metrics")).await, 404, "not_found");
}

pub async fn request_ids_are_passed_on_or_made(stack: &Stack) {
    let ask = |id: &str| send(stack.client.request(Method::GET, "/keys/self").header("X-Request-Id", id));
    assert_eq!(ask("mine-1.B_c").await.header("X-Request-Id"), "mine-1.B_c");
    let made = send(stack.client.request(Method::GET, "/keys/self")).await;
    assert_eq!(made.header("X-Request-Id").len(), 32, "{made:?}");
    let insane = ask("no \"sane\" one").await;
    assert_eq!(insane.header("X-Request-Id").len(), 32, "{insane:?}");
    // The API's problems have the id that nginx logs.
    let missing = stack.client.get("/nothing").await.expect(404);
    assert_eq!(missing.body["request_id"], missing.header("X-Request-Id"));
    eventually(60, "a line of nginx's log", async || match stack.asked(missing.header("X-Request-Id")).len() {
        1 => Ok(()),
        lines => Err(lines),
    })
    .await;
}

pub async fn errors_of_nginx_are_problems(stack: &Stack) {
    let large = stack.client.request(Method::POST, "/instances").header("Content-Type", "application/json");
    problem(&send(large.body("x".repeat(2 << 20))).await, 413, "payload_too_large");
    let header = stack.client.request(Method::GET, "/keys/self").header("X-Long", "x".repeat(40_000));
    problem(&send(header).await, 431, "malformed_request");
    let path = format!("/instances?label={}", "x".repeat(40_000));
    problem(&send(stack.client.request(Method::GET, &path)).await, 414, "malformed_request");
    let said = raw(address(stack), "NOT HTTP\r\n\r\n");
    assert!(said.contains(" 400 ") && said.contains("\"code\":\"malformed_request\""), "{said}");
    let end = "Host: h\r\nConnection: close\r\n\r\n";
    for (request, status, code) in [
        ("TRACE / HTTP/1.1\r\n", 405, "method_not_allowed"),
        ("CONNECT / HTTP/1.1\r\n", 405, "method_not_allowed"),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n", 400, "malformed_request"),
        ("GET / HTTP/3.0\r\n", 400, "malformed_request"),
    ] {
        let said = raw(address(stack), &format!("{request}{end}"));
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {said}");
        assert!(said.contains(&format!("\"code\":\"{code}\"")), "{request}: {said}");
        assert!(said.contains("application/problem+json"), "{request}: {said}");
        assert_eq!(said.contains("\r\nAllow: GET"), status == 405, "{request}: {said}");
    }
}

pub async fn old_clients_and_offers_of_an_upgrade_are_served(stack: &Stack) {
    // Load balancers' health checks.
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

pub async fn requests_without_a_key_are_limited_and_those_with_one_are_not(stack: &Stack) {
    let began = Instant::now();
    let anonymous = (0..200).map(|_| send(stack.client.anonymous(Method::GET, "/keys/self")));
    let answers = futures_util::future::join_all(anonymous).await;
    let limited: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 429).collect();
    // Forty at once and one more, and then twenty a second.
    let (passed, took) = (answers.len() - limited.len(), began.elapsed());
    assert!(passed as f64 <= 42.0 + 20.0 * took.as_secs_f64(), "{passed} passed in {took:?}");
    assert!(limited.len() > 20, "too slow to meet the limit: {passed} passed in {took:?}");
    assert!(answers.iter().all(|answer| answer.status == 429 || answer.status == 401));
    problem(limited[0], 429, "rate_limited");
    assert_eq!(limited[0].header("Retry-After"), "1");
    let known = (0..200).map(|_| stack.client.get("/keys/self"));
    for answer in futures_util::future::join_all(known).await {
        answer.expect(200);
    }
}

pub async fn the_log_is_json_and_holds_no_secret(stack: &Stack) {
    let bearer = stack.client.anonymous(Method::GET, "/instances?label=a=sesame").bearer_auth(&stack.client.key);
    send(bearer.header("X-Request-Id", "secretless-")).await.expect(200);
    let body = json!({"name": "sesame", "image": "nowhere/sesame:1", "colour": "sesame"});
    let post = stack.client.request(Method::POST, "/instances").header("X-Request-Id", "refused-").json(&body);
    send(post).await.expect(422);
    let read = || docker(&["logs", &stack.container("nginx")]);
    // The last of them is logged when its answer is out, and takes its way through Docker.
    eventually(60, "both in nginx's log", async || {
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
    assert!(!log.contains("sesame"), "what a tenant sent is in the log");
}

/// In front of an API that streams and hangs up, as the real one cannot be made to.
pub async fn streams_pass_upgrades_do_not_and_a_post_is_not_replayed(stack: &Stack) {
    let fakes = Fakes::start(stack).await;
    let base = format!("http://{}", fakes.address);

    let began = Instant::now();
    let mut stream = reqwest::get(format!("{base}/stream")).await.unwrap();
    let first = stream.chunk().await.unwrap().unwrap();
    assert_eq!((&first[..], began.elapsed() < Duration::from_secs(4)), (&b"a\n"[..], true), "{:?}", began.elapsed());
    assert_eq!(&stream.chunk().await.unwrap().unwrap()[..], b"b\n");
    assert!(began.elapsed() >= Duration::from_secs(5), "it came at once: this shows nothing");

    // An offer of an upgrade is not passed on.
    let offered = raw(
        &fakes.address,
        "GET /offered HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n",
    );
    assert!(offered.starts_with("HTTP/1.1 200 ") && offered.ends_with("\r\n\r\nno"), "{offered}");

    // Two replicas, which both hang up: a GET was tried with both, a POST with one.
    let http = reqwest::Client::new();
    for (method, tried) in [(Method::GET, 2), (Method::POST, 1), (Method::PATCH, 1)] {
        let answer = send(http.request(method.clone(), format!("{base}/hang-up")).header("X-API-Key", "some")).await;
        problem(&answer, 502, "unavailable");
        assert_eq!(answer.header("Retry-After"), "1");
        assert_eq!(fakes.heard(&format!("{method} /hang-up")), tried, "{method}");
        // max_fails may have taken one out of turn, for fail_timeout: whoever would try again finds both.
        eventually(30, "both fakes in turn", async || {
            let before = fakes.each_heard("GET /ok");
            for _ in 0..2 {
                http.get(format!("{base}/ok")).send().await.map_err(|error| error.to_string())?;
            }
            let heard = fakes.each_heard("GET /ok");
            if heard.iter().zip(&before).all(|(now, before)| now > before) { Ok(()) } else { Err(format!("{heard:?}")) }
        })
        .await;
    }
}

struct Fakes {
    names: Vec<String>,
    network: String,
    address: String,
}

/// What stands for an API: reads a request's head, notes it, and answers by its path.
const FAKE: &str = r#"
cat >/fake <<'END'
#!/bin/sh
read -r method path version
offered=no
while read -r line && [ "${#line}" -gt 1 ]; do case $line in [Uu]pgrade:*) offered=yes ;; esac; done
echo "$method $path" >>/heard
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
            let place = ["run", "-d", "--name", &name, "--network", &fakes.network, "--network-alias", "api"];
            docker(&[&place[..], &[&demo_image(), "sh", "-c", FAKE]].concat());
            fakes.names.push(name);
        }
        // nginx as the stack has it.
        let about = inspect(&stack.container("nginx"));
        let name = format!("{}-edge", stack.project);
        let (network, image) = (fakes.network.clone(), about["Config"]["Image"].as_str().unwrap().to_owned());
        let mut run = vec!["run", "-d", "--name", &name, "--network", &network, "--user", "101:101", "--tmpfs", "/tmp"];
        run.extend(["-p", "127.0.0.1::8080"]);
        let mounts = about["Mounts"].as_array().unwrap().iter();
        let mounts = mounts.map(|mount| {
            format!("{}:{}:ro", mount["Source"].as_str().unwrap(), mount["Destination"].as_str().unwrap())
        });
        let mounts: Vec<String> = mounts.collect();
        run.extend(mounts.iter().flat_map(|mount| ["-v", mount]));
        docker(&[&run[..], &[&image, "sh", "/etc/nginx/app/start.sh"]].concat());
        fakes.names.push(name.clone());
        fakes.address = docker(&["port", &name, "8080"]).lines().next().unwrap().to_owned();
        let ok = format!("http://{}/ok", fakes.address);
        eventually(60, "nginx before two fakes", async || {
            let knows_both = docker_does(&["exec", &name, "sh", "-c", "[ $(grep -c server /tmp/upstream.conf) = 2 ]"]);
            match reqwest::get(&ok).await {
                Ok(answer) if answer.status() == 200 && knows_both => Ok(()),
                other => Err(format!("{knows_both} {other:?}")),
            }
        })
        .await;
        fakes
    }

    /// How often the two were asked this.
    fn heard(&self, request: &str) -> usize {
        self.each_heard(request).iter().sum()
    }

    /// How often each was.
    fn each_heard(&self, request: &str) -> [usize; 2] {
        [0, 1].map(|n| {
            let lines = docker(&["exec", &self.names[n], "cat", "/heard"]);
            lines.lines().filter(|line| *line == request).count()
        })
    }
}

impl Drop for Fakes {
    fn drop(&mut self) {
        for name in &self.names {
            docker_does(&["rm", "-f", name]);
        }
        docker_does(&["network", "rm", &self.network]);
    }
}

fn address(stack: &Stack) -> &str {
    stack.url.trim_start_matches("http://")
}

/// All that comes back for these bytes.
fn raw(address: &str, request: &str) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket.write_all(request.as_bytes()).unwrap();
    let mut said = String::new();
    socket.read_to_string(&mut said).unwrap();
    said
}
