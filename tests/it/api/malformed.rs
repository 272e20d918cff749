//! Hundreds of malformed bodies: each is the client's error, and none leaves anything behind.

use futures_util::{StreamExt, stream};
use reqwest::Method;
use serde_json::{Value, json};

use super::problem::problem;
use crate::support::{Cluster, client::send};

const UNREADABLE: &str = "malformed_request";
const WRONG: &str = "validation_failed";

/// Returns a body that would be accepted, with every field.
fn full() -> Value {
    json!({
        "name": "web", "image": "web:1", "command": ["serve"], "env": {"A": "b"}, "cpu_millis": 100, "memory_mib": 128,
        "network": "default", "ports": [{"container": 80, "host": 0, "protocol": "tcp"}], "labels": {"app": "web"},
        "restart_policy": "no", "placement": {"host": "h1", "labels": {"zone": "a"}},
    })
}

/// A random generator that produces the same numbers each time.
fn places(many: usize, below: usize) -> impl Iterator<Item = usize> {
    (1..=many).scan(7u32, move |state, _| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some(usize::try_from(*state >> 8).unwrap() % below)
    })
}

fn unreadable() -> Vec<Vec<u8>> {
    let text = full().to_string();
    let mut bodies: Vec<Vec<u8>> = Vec::new();
    // Truncated at any place.
    bodies.extend((0..text.len()).step_by(4).map(|end| text.as_bytes()[..end].to_vec()));
    // An added byte: no control character and no broken UTF-8 is allowed anywhere, in or outside a string.
    for (n, at) in places(60, text.len()).enumerate() {
        let mut bytes = text.clone().into_bytes();
        bytes.insert(at, [0x00, 0x01, 0x1f, 0xff, 0xc3, 0x80][n % 6]);
        bodies.push(bytes);
    }
    let nested = [
        "[".repeat(5_000),
        "[".repeat(5_000) + &"]".repeat(5_000),
        "{\"a\":".repeat(5_000),
        "{\"a\":".repeat(5_000) + "1" + &"}".repeat(5_000),
        format!("{{\"image\":\"web:1\",\"labels\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000)),
    ];
    bodies.extend(nested.into_iter().map(String::into_bytes));
    let texts = [
        "",
        " ",
        "\n\n",
        "{",
        "}",
        "nope",
        "nul",
        "tru",
        "'",
        "\"",
        "{'image':'web:1'}",
        "{image:\"web:1\"}",
        "{\"image\":\"web:1\",}",
        "{\"image\":\"web:1\"}{}",
        "{\"image\":\"web:1\"} x",
        "{\"image\":\"web:1\"}\0",
        "\u{feff}{\"image\":\"web:1\"}",
        "{\"image\":\"web:1\",\"cpu_millis\":NaN}",
        "{\"image\":\"web:1\",\"cpu_millis\":Infinity}",
        "{\"image\":\"web:1\",\"cpu_millis\":1e999}",
        "{\"image\":\"web:1\",\"cpu_millis\":0x10}",
        "{\"image\":\"web:1\",\"cpu_millis\":0100}",
        "{\"image\":\"web:1\",\"cpu_millis\":+100}",
        "{\"image\":\"web:1\",\"cpu_millis\":100.}",
        "{\"image\":\"web:1\" // comment\n}",
        "{\"image\":\"\\ud800\"}",
        "{\"image\":\"\\udc00\"}",
        "{\"image\":\"\\ud800\\ud800\"}",
        "{\"image\":\"\\u12\"}",
        "{\"image\":\"\\x41\"}",
        "{\"image\":\"web:1\",\"env\":{\"A\":\"\\ud83d\"}}",
        "image=web%3A1",
        "<instance image=\"web:1\"/>",
        "--\nimage: web:1",
        // Parsers differ on a name that is given twice, so it is refused.
        "{\"image\":\"web:1\",\"image\":\"web:2\"}",
        "{\"image\":\"web:1\",\"env\":{\"A\":\"1\",\"A\":\"2\"}}",
        "{\"image\":\"web:1\",\"ports\":[{\"container\":80,\"container\":81}]}",
        "{\"image\":\"web:1\",\"im\\u0061ge\":\"web:2\"}",
    ];
    bodies.extend(texts.iter().map(|text| text.as_bytes().to_vec()));
    bodies.push("{\"image\":\"web:1\"}".encode_utf16().flat_map(u16::to_le_bytes).collect());
    bodies
}

/// Bodies with the pointer that the first error must begin with.
fn wrong() -> Vec<(String, String)> {
    let mut bodies: Vec<(String, String)> = Vec::new();
    let every = [
        json!(1),
        json!(-1),
        json!(1.5),
        json!("x"),
        json!(true),
        json!([]),
        json!({}),
        json!([1]),
        json!({"a": 1}),
        json!([[]]),
    ];
    // A value of each other type than the field's own, and a number outside of an i32.
    let fits = |pointer: &str, value: &Value| match pointer {
        "/name"
        | "/image"
        | "/network"
        | "/restart_policy"
        | "/ports/0/protocol"
        | "/placement/host"
        | "/command/0"
        | "/env/A"
        | "/labels/app"
        | "/placement/labels/zone" => value.is_string(),
        "/cpu_millis" | "/memory_mib" | "/ports/0/container" | "/ports/0/host" => value.as_i64() == Some(1),
        "/command" | "/ports" => value.as_array().is_some_and(|items| items.is_empty()),
        "/ports/0" => false,
        "/env" | "/labels" | "/placement" | "/placement/labels" => {
            value.as_object().is_some_and(|fields| fields.is_empty())
        }
        other => panic!("{other}"),
    };
    for pointer in [
        "/name",
        "/image",
        "/network",
        "/restart_policy",
        "/ports/0/protocol",
        "/placement/host",
        "/command/0",
        "/env/A",
        "/labels/app",
        "/placement/labels/zone",
        "/cpu_millis",
        "/memory_mib",
        "/ports/0/container",
        "/ports/0/host",
        "/command",
        "/ports",
        "/ports/0",
        "/env",
        "/labels",
        "/placement",
        "/placement/labels",
    ] {
        for value in every.iter().filter(|value| !fits(pointer, value)) {
            let mut body = full();
            *body.pointer_mut(pointer).unwrap() = value.clone();
            bodies.push((body.to_string(), pointer.into()));
        }
        // U+0000 is refused in every text: Postgres cannot store it.
        let mut body = full();
        if body.pointer(pointer).unwrap().is_string() {
            *body.pointer_mut(pointer).unwrap() = json!("a\0b");
            bodies.push((body.to_string(), pointer.into()));
        }
    }
    for number in
        ["2147483648", "-2147483649", "99999999999999999999999", "1e5", "100.0", "1E2", "0", "-0", "1e-5", "0.1"]
    {
        for field in ["cpu_millis", "memory_mib"] {
            bodies.push((format!("{{\"image\":\"web:1\",\"{field}\":{number}}}"), format!("/{field}")));
        }
    }
    for (field, value) in [
        ("name", json!("Web")),
        ("name", json!("")),
        ("name", json!("a".repeat(64))),
        ("name", json!("é")),
        ("name", json!("-a")),
        ("image", json!("")),
        ("image", json!(null)),
        ("image", json!("web 1")),
        ("image", json!("x".repeat(513))),
        ("image", json!("wéb")),
        ("command", json!([])),
        ("command", json!([""])),
        ("command", json!(vec!["a"; 1025])),
        ("env", json!({"": "x"})),
        ("env", json!({"A=B": "x"})),
        ("env", json!({"A\0": "x"})),
        ("env", json!({"A": "x".repeat(32 * 1024 + 1)})),
        ("labels", json!({"": "x"})),
        ("labels", json!({"a=b": "x"})),
        ("placement", json!({"labels": {"a=b": "x"}})),
        ("env", json!({"A": "x".repeat(32 * 1024), "B": "x".repeat(32 * 1024 - 1)})),
        ("command", json!(["x".repeat(32 * 1024), "x".repeat(32 * 1024), "x"])),
        ("labels", json!({"x".repeat(64): "x"})),
        ("labels", json!({"a": "x".repeat(256)})),
        ("network", json!("")),
        ("network", json!("no-such-network")),
        ("restart_policy", json!("sometimes")),
        ("ports", json!([{"container": 0}])),
        ("ports", json!([{"container": 80.0}])),
        ("ports", json!([{"container": 65536}])),
        ("ports", json!([{"container": 80, "host": 80}])),
        ("ports", json!([{"container": 80, "host": -1}])),
        ("ports", json!([{"container": 80, "protocol": "sctp"}])),
        ("ports", json!([{"container": 80}, {"container": 80}])),
        ("ports", json!([{}])),
        ("ports", json!([{"container": 80, "x": 1}])),
        // A list of an object's values is no object.
        ("ports", json!([[80, 0, "tcp"]])),
        ("placement", json!(["h1", {}])),
        ("placement", json!({"host": ""})),
        ("placement", json!({"zone": "a"})),
        ("id", json!("x")),
        ("status", json!("running")),
        ("Image", json!("x")),
        ("tenant_id", json!("x")),
        ("", json!("x")),
    ] {
        let mut body = json!({"image": "web:1"});
        body[field] = value;
        bodies.push((body.to_string(), format!("/{field}")));
    }
    for text in ["null", "true", "1", "\"web:1\"", "[]", "[1]", "[null,\"web:1\"]", "{}", "[{\"image\":\"web:1\"}]"] {
        bodies.push((text.into(), String::new()));
    }
    // Every field in the order of the document, as a list.
    bodies.push((json!([null, "web:1", null, {}, null, null, null, [], {}, null, null]).to_string(), String::new()));
    bodies
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_bodies_are_client_errors_and_leave_nothing() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let unreadable = unreadable().into_iter().map(|body| (body, UNREADABLE, String::new()));
    let wrong = wrong().into_iter().map(|(body, pointer)| (body.into_bytes(), WRONG, pointer));
    let bodies: Vec<_> = unreadable.chain(wrong).collect();
    assert!(bodies.len() >= 200);
    let submit = |(n, (body, code, pointer)): (usize, (Vec<u8>, &'static str, String))| {
        let shown = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
        let request = client
            .request(Method::POST, "/instances")
            .header("Content-Type", "application/json")
            .header("Idempotency-Key", format!("malformed-{n}"))
            .body(body);
        async move {
            let answer = send(request).await;
            assert_eq!((answer.status / 100, answer.code()), (4, code), "{shown}\n{}", answer.text);
            let pointers = problem(&answer, code);
            let found = pointers.first().cloned().unwrap_or_default();
            assert!(found.starts_with(&pointer), "{shown}\n{pointer}: {}", answer.text);
        }
    };
    stream::iter(bodies.into_iter().enumerate()).map(submit).buffer_unordered(16).collect::<Vec<()>>().await;

    let sql = cluster.sql().await;
    let left = async |table: &str| -> i64 {
        sql.query_one(&format!("select count(*) from {table}"), &[]).await.unwrap().get(0)
    };
    for table in ["instances", "jobs", "addresses", "published_ports", "idempotency"] {
        assert_eq!(left(table).await, 0, "{table}");
    }
    // The body that was mutated is accepted itself.
    let request = client.request(Method::POST, "/instances").header("Idempotency-Key", "malformed-0").json(&full());
    assert_eq!(send(request).await.status, 202);
    for table in ["instances", "jobs", "addresses", "published_ports", "idempotency"] {
        assert_eq!(left(table).await, 1, "{table}");
    }
}
