//! Authentication and authorization: keys, scopes and tenants, and the order of the checks.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{problem::problem, raw};
use crate::support::{Answer, Client, Cluster, client::send};

const SCOPES: [&str; 6] =
    ["instances:read", "instances:write", "networks:read", "networks:write", "keys:read", "keys:write"];

/// Creates a key of the admin's own tenant.
async fn key(admin: &Client, scopes: &[&str]) -> (Client, String) {
    let made = admin.post("/keys", json!({"name": "k", "scopes": scopes})).await.expect(201).body;
    (admin.with_key(made["key"].as_str().unwrap()), made["id"].as_str().unwrap().to_owned())
}

/// Returns the body without the fields that differ from request to request.
fn anonymized(answer: &Answer) -> Value {
    let mut body = answer.body.clone();
    body["request_id"] = json!("");
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn all_invalid_keys_get_the_same_401() {
    let mut cluster = Cluster::simulated().await;
    // The keys are changed by SQL: no cache knows of it.
    cluster.set("IDENTITY_CACHE", "off");
    let (_api, admin) = cluster.serve();
    let sql = cluster.sql().await;

    let spoilt = async |change: &str| {
        let (client, id) = key(&admin, &["instances:read"]).await;
        client.get("/keys/self").await.expect(200);
        assert_eq!(sql.execute(change, &[&id.parse::<Uuid>().unwrap()]).await.unwrap(), 1, "{change}");
        client.key
    };
    let (revoked, id) = key(&admin, &["instances:read"]).await;

    admin.delete(&format!("/keys/{id}")).await.expect(204);

    // Created for the same database by a process with other secrets: well-formed and stored, but with a wrong tag.
    let other_secrets = {
        let elsewhere = tempfile::TempDir::new().unwrap();
        let mut command = cluster.command(&["keys", "create", "--tenant", "acme", "--name", "x", "--scope", "admin"]);
        let output = command.env("APP_STATE_DIR", elsewhere.path()).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    // The last character is part of the checksum.
    let typo = format!("{}{}", &admin.key[..55], if admin.key.ends_with('x') { 'y' } else { 'x' });
    let suspended = admin.with_key(&cluster.key("suspended", "admin"));

    suspended.get("/keys/self").await.expect(200);

    sql.execute("update tenants set suspended_at = now() where name = 'suspended'", &[]).await.unwrap();
    let bad = [
        ("malformed", "x".to_owned()),
        ("empty", String::new()),
        ("blank", " ".into()),
        ("typo", typo),
        ("cut", admin.key[..55].into()),
        ("too long", format!("{}x", admin.key)),
        ("huge", "x".repeat(8000)),
        ("two in one", format!("{0}, {0}", admin.key)),
        ("with a quote", format!("\"{}\"", admin.key)),
        ("unknown", spoilt("delete from api_key where id = $1").await),
        ("expired", spoilt("update api_key set expires_at = now() - interval '1 second' where id = $1").await),
        ("not yet", spoilt("update api_key set not_before = now() + interval '1 hour' where id = $1").await),
        ("revoked", revoked.key),
        ("other secrets", other_secrets),
        ("of a suspended tenant", suspended.key),
    ];
    let reference = send(admin.anonymous(Method::GET, "/instances")).await;
    problem(&reference, "unauthenticated");
    let refused = |answer: &Answer, what: &str| {
        problem(answer, "unauthenticated");
        assert_eq!(anonymized(answer), anonymized(&reference), "{what}");
    };
    for (what, key) in &bad {
        refused(&send(admin.anonymous(Method::GET, "/instances").header("X-API-Key", key)).await, what);
        refused(
            &send(admin.anonymous(Method::GET, "/instances").header("Authorization", format!("Bearer {key}"))).await,
            what,
        );
        refused(&send(admin.anonymous(Method::POST, "/instances").header("X-API-Key", key).body("{")).await, what);
    }
    let good = &admin.key;
    for authorization in
        ["Bearer", "Bearer ", &format!("Basic {good}"), &format!("Token {good}"), good, &format!("Bearer{good}")]
    {
        refused(
            &send(admin.anonymous(Method::GET, "/keys/self").header("Authorization", authorization)).await,
            authorization,
        );
    }
    let mut not_ascii = b"GET /instances HTTP/1.1\r\nHost: api\r\nConnection: close\r\nX-API-Key: ".to_vec();
    not_ascii.extend([0xff, 0xfe]);
    not_ascii.extend(b"\r\n\r\n");
    refused(&raw::exchange(&admin, &not_ascii).await, "not ASCII");
    for path in [format!("/instances?api_key={good}"), format!("/instances?key={good}")] {
        refused(&send(admin.anonymous(Method::GET, &path)).await, "a key does not belong into a URL");
    }
    // The valid key in every documented form.
    for authorization in [format!("Bearer {good}"), format!("bearer {good}"), format!("BEARER  {good}")] {
        let answer = send(admin.anonymous(Method::GET, "/keys/self").header("Authorization", authorization)).await;
        assert_eq!(answer.expect(200).body["scopes"], json!(["admin"]));
    }
}

/// A route of the OpenAPI document, with the scope that the contract requires.
struct Route {
    method: Method,
    path: String,
    /// `None`: any key is sufficient.
    scope: Option<&'static str>,
}

impl Route {
    /// Returns the path with a value in place of each parameter.
    fn with(&self, ids: &BTreeMap<&str, &str>) -> String {
        let (mut path, random) = (self.path.clone(), Uuid::now_v7().to_string());
        let collection = path.split('/').nth(1).unwrap().to_owned();
        path = path.replacen("{id}", ids.get(collection.as_str()).copied().unwrap_or(&random), 1);
        while let Some((before, rest)) = path.split_once('{') {
            path = format!("{before}{random}{}", rest.split_once('}').unwrap().1);
        }
        path
    }
}

/// Returns the routes that need a key, with the scopes written out here a second time.
async fn routes(client: &Client) -> Vec<Route> {
    let document = client.get("/openapi.json").await.expect(200).body;
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let public =
                ["/health/", "/metrics", "/openapi.json", "/docs"].iter().any(|prefix| path.starts_with(prefix));
            assert_eq!(operation["security"] == json!([{}]), public, "{method} {path}");
            if public {
                continue;
            }
            let write = method != "get";
            let scope = match (path.split('/').nth(1).unwrap(), write) {
                ("instances" | "jobs", false) => "instances:read",
                ("instances" | "jobs", true) => "instances:write",
                ("networks", false) => "networks:read",
                ("networks", true) => "networks:write",
                ("keys", false) => "keys:read",
                ("keys", true) => "keys:write",
                ("tenants" | "hosts", _) => "admin",
                other => panic!("{other:?}"),
            };
            routes.push(Route {
                method: method.to_uppercase().parse().unwrap(),
                path: path.clone(),
                scope: (path != "/keys/self").then_some(scope),
            });
        }
    }
    assert!(routes.len() >= 12);
    routes
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_require_exactly_their_scope() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();

    let mut only = BTreeMap::from([("admin", admin.clone())]);
    let mut all_but = BTreeMap::from([("admin", key(&admin, &SCOPES).await.0)]);
    for scope in SCOPES {
        only.insert(scope, key(&admin, &[scope]).await.0);
        let others: Vec<&str> = SCOPES.into_iter().filter(|other| *other != scope).collect();
        all_but.insert(scope, key(&admin, &others).await.0);
    }

    for route in routes(&admin).await {
        let what = format!("{} {}", route.method, route.path);
        // An unknown id, a wrong parameter and a wrong body: all of that is checked later.
        let path = route.with(&BTreeMap::new()) + "?colour=%zz";
        let submit = async |client: &Client| send(client.request(route.method.clone(), &path).body("{")).await;
        problem(&send(admin.anonymous(route.method.clone(), &path).body("{")).await, "unauthenticated");
        let Some(scope) = route.scope else {
            for client in only.values() {
                assert_eq!(submit(client).await.code(), "malformed_request", "{what}");
            }
            continue;
        };
        problem(&submit(&all_but[scope]).await, "forbidden");
        for client in [&only[scope], &admin] {
            let answer = submit(client).await;
            assert!(matches!(answer.status, 400 | 404 | 415 | 422), "{what}: {}", answer.text);
        }
        // In another spelling it is the same route, or none: actix decodes a path before it routes by it.
        let (first, rest) = path[1..].split_at(1);
        let spelt = format!("/%{:02x}{rest}", first.as_bytes()[0]);
        let answer =
            raw::exchange(&all_but[scope], &raw::head(&all_but[scope], &format!("{} {spelt}", route.method), "")).await;
        assert!(
            matches!(answer.code(), "forbidden" | "not_found" | "method_not_allowed"),
            "{what} as {spelt}: {}",
            answer.text
        );
        if route.method == Method::GET {
            assert_eq!(send(all_but[scope].request(Method::HEAD, &path)).await.status, 403, "HEAD {}", route.path);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_other_tenants_are_not_found() {
    let cluster = Cluster::simulated().await;
    let (_api, acme) = cluster.serve();

    let made = acme.post("/instances", json!({"image": "web:1", "name": "theirs"})).await;
    let (instance, job) = (made.instance(), made.job());
    let network = made.body["instance"]["network"]["id"].as_str().unwrap().to_owned();
    let (victim, key_id) = key(&acme, &["instances:read"]).await;
    let ids = BTreeMap::from([
        ("instances", instance.as_str()),
        ("jobs", job.as_str()),
        ("networks", network.as_str()),
        ("keys", key_id.as_str()),
    ]);
    let rival_admin = acme.with_key(&cluster.key("rival", "admin"));
    let (rival, _) = key(&rival_admin, &SCOPES).await;
    let mut requests = 0;
    for route in routes(&acme).await {
        // Tenants, hosts and keys need the scope `admin`, whichever tenant they belong to.
        if !route.path.contains("{id}") || route.scope == Some("admin") {
            continue;
        }
        let theirs = send(rival.request(route.method.clone(), &route.with(&ids))).await;
        let nobodys = send(rival.request(route.method.clone(), &route.with(&BTreeMap::new()))).await;
        problem(&theirs, "not_found");
        // Not even the length of the response shows that the object exists.
        assert_eq!(anonymized(&theirs), anonymized(&nobodys), "{} {}", route.method, route.path);
        if !route.path.starts_with("/keys") {
            problem(&send(rival_admin.request(route.method.clone(), &route.with(&ids))).await, "not_found");
        }
        requests += 1;
    }

    assert!(requests >= 5, "{requests}");

    for list in
        ["/instances?name=theirs", &format!("/jobs?instance={instance}"), &format!("/instances?network={network}")]
    {
        assert_eq!(rival.get(list).await.expect(200).body["items"], json!([]), "{list}");
    }

    let body = json!({"image": "web:1", "network": network});
    assert_eq!(problem(&rival.post("/instances", body).await, "validation_failed"), ["/network"]);
    // Nothing has changed.
    assert_eq!(acme.get(&format!("/instances/{instance}")).await.expect(200).body["status"], "pending");
    assert_eq!(acme.get(&format!("/jobs/{job}")).await.expect(200).body["status"], "queued");
    victim.get("/keys/self").await.expect(200);
    // An admin manages the keys of any tenant.
    rival_admin.delete(&format!("/keys/{key_id}")).await.expect(204);

    problem(&victim.get("/keys/self").await, "unauthenticated");
}

#[tokio::test(flavor = "multi_thread")]
async fn key_scope_existence_query_and_body_are_checked_in_order() {
    let cluster = Cluster::simulated().await;
    let (_api, admin) = cluster.serve();

    let made = admin.post("/instances", json!({"image": "web:1"})).await;
    let network = made.body["instance"]["network"]["id"].as_str().unwrap().to_owned();
    let (_, key_id) = key(&admin, &["keys:read"]).await;
    let (reader, _) = key(&admin, &["keys:read"]).await;
    let nowhere = Uuid::now_v7();
    let existing = [
        (Method::GET, format!("/instances/{}", made.instance())),
        (Method::DELETE, format!("/instances/{}", made.instance())),
        (Method::GET, format!("/jobs/{}", made.job())),
        (Method::GET, format!("/networks/{network}")),
        (Method::DELETE, format!("/keys/{key_id}")),
    ];
    for (method, path) in existing {
        let missing = format!("/{}/{nowhere}", path.split('/').nth(1).unwrap());
        for (query, code) in [("colour=red", "validation_failed"), ("colour=%zz", "malformed_request")] {
            let at = |path: &str| format!("{path}?{query}");
            problem(&send(admin.anonymous(method.clone(), &at(&missing))).await, "unauthenticated");
            problem(&send(reader.request(method.clone(), &at(&missing))).await, "forbidden");
            problem(&send(admin.request(method.clone(), &at(&missing))).await, "not_found");
            problem(&send(admin.request(method.clone(), &at(&path))).await, code);
        }
        if method == Method::DELETE {
            let with_bad_key = |path: &str| admin.request(Method::DELETE, path).header("Idempotency-Key", "");
            problem(&send(with_bad_key(&missing)).await, "not_found");
            problem(&send(with_bad_key(&path)).await, "validation_failed");
        }
    }
    for path in ["/instances", "/keys"] {
        let post = |query: &str| {
            admin.request(Method::POST, &format!("{path}{query}")).header("Content-Type", "application/json")
        };
        assert_eq!(problem(&send(post("?colour=red").body("{")).await, "validation_failed"), ["?colour"]);
        problem(&send(post("").body("{").header("Idempotency-Key", "")).await, "malformed_request");
    }

    // None of these requests had an effect.
    assert_eq!(admin.get(&format!("/instances/{}", made.instance())).await.body["status"], "pending");

    let keys = admin.get("/keys").await.expect(200).body;
    assert!(keys["items"].as_array().unwrap().iter().any(|key| key["id"] == key_id.as_str()));
}
