//! Real responses of the API are validated by the schemas of its OpenAPI document.

use boon::{Compiler, Schemas};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Cluster, client::send};

const DOCUMENT: &str = "mem:///openapi.json";

/// Panics when a text does not match a schema of the document.
#[track_caller]
fn assert_is(document: &Value, schema: &str, value: &Value) {
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.add_resource(DOCUMENT, document.clone()).unwrap();
    let index = compiler.compile(&format!("{DOCUMENT}#/components/schemas/{schema}"), &mut schemas).unwrap();
    if let Err(error) = schemas.validate(value, index) {
        panic!("no {schema}: {error:#}\n{value:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_match_the_openapi_document() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let _worker = cluster.work();
    let document = send(client.anonymous(Method::GET, "/openapi.json")).await.expect(200).body;
    let get = async |path: String| client.get(&path).await.expect(200).body;

    let body = json!({"image": "web:1", "command": ["a"], "env": {"A": "b"}, "labels": {"c": "d"}, "ports": [{"container": 80}],
                      "restart_policy": "always", "placement": {"host": "h1"}});
    assert_is(&document, "CreateInstance", &body);
    let made = client.post("/instances", body).await.expect(202);
    assert_is(&document, "Accepted", &made.body);
    client.wait_for_job(&made.job()).await;
    let failing = client.post("/instances", json!({"image": "missing/x"})).await;
    client.wait_for_job(&failing.job()).await;
    for (id, job) in [(made.instance(), made.job()), (failing.instance(), failing.job())] {
        assert_is(&document, "Instance", &get(format!("/instances/{id}")).await);
        assert_is(&document, "Job", &get(format!("/jobs/{job}")).await);
    }
    for (schema, path) in [
        ("InstanceList", "/instances?limit=1"),
        ("JobList", "/jobs"),
        ("NetworkList", "/networks"),
        ("Key", "/keys/self"),
        ("Live", "/health/live"),
        ("Ready", "/health/ready"),
    ] {
        assert_is(&document, schema, &get(path.into()).await);
    }

    let body = json!({"name": "k", "scopes": ["admin"], "expires_at": "2030-01-01T00:00:00Z", "limits": {"rps": 1, "burst": 9}});
    assert_is(&document, "CreateKey", &body);
    let key = client.post("/keys", body).await.expect(201).body;
    assert_is(&document, "NewKey", &key);
    let path = format!("/keys/{}", key["id"].as_str().unwrap());
    assert_is(
        &document,
        "NewKey",
        &client.post(&format!("{path}/rotate"), json!({"grace_s": 9})).await.expect(201).body,
    );
    assert_is(&document, "ListedKey", &get(path.clone()).await);
    assert_is(&document, "KeyList", &get("/keys".into()).await);

    let refused = client.post("/instances", json!({"image": "", "colour": 1})).await.expect(422).body;
    assert_is(&document, "Problem", &refused);
    assert_is(&document, "Problem", &client.get("/instances/x").await.expect(404).body);
}
