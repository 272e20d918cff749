//! Lists: newest first, paged by cursor, filtered, and never behind the caller's own writes.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::problem::problem;
use crate::support::{Client, Cluster, cluster::base_url};

async fn ids(client: &Client, path: &str) -> Vec<String> {
    items(&client.get(path).await.expect(200).body)
}

fn items(list: &Value) -> Vec<String> {
    let fields: Vec<&str> = list.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["items", "next_cursor"]);
    list["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

async fn create(client: &Client, body: Value) -> String {
    client.post("/instances", body).await.instance()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_newest_first_and_stable_while_rows_are_added() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();

    assert_eq!(client.get("/instances").await.expect(200).body, json!({"items": [], "next_cursor": null}));

    let mut made = Vec::new();
    for _ in 0..7 {
        made.push(create(&client, json!({"image": "web:1"})).await);
        assert_eq!(ids(&client, "/instances?limit=1").await, made[made.len() - 1..], "the caller's own write");
    }
    made.reverse();

    assert_eq!(ids(&client, "/instances").await, made);

    let (mut listed, mut cursor, mut sizes) = (Vec::new(), String::new(), Vec::new());
    loop {
        let page = client.get(&format!("/instances?limit=3&cursor={cursor}")).await.expect(200).body;
        sizes.push(items(&page).len());
        listed.extend(items(&page));
        // Neither a newer row nor the deletion of a row that was listed changes the pages that follow.
        create(&client, json!({"image": "web:1"})).await;
        client.delete(&format!("/instances/{}", listed[0])).await.expect(202);
        match page["next_cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }

    assert_eq!((listed, sizes), (made, vec![3, 3, 1]));

    // A page that ends with the last item has no next page.
    let page = client.get("/instances?limit=9").await.expect(200).body;
    assert_eq!((items(&page).len(), &page["next_cursor"]), (9, &json!(null)));

    for cursor in ["x", "%21", "AAAA", &uuid::Uuid::now_v7().to_string(), "AAAAAAAAAAAAAAAAAAAAAAA"] {
        let answer = client.get(&format!("/instances?cursor={cursor}")).await;
        assert_eq!(problem(&answer, "validation_failed"), ["?cursor"], "{cursor}");
    }
    // Jobs, networks and keys are paged in the same way.
    for path in ["/jobs", "/keys", "/networks"] {
        let all = ids(&client, path).await;
        assert!(all.is_sorted_by(|newer, older| newer > older), "{path}: {all:?}");
        let first = client.get(&format!("{path}?limit=1")).await.expect(200).body;
        assert_eq!(items(&first), all[..1], "{path}");
        if let Some(cursor) = first["next_cursor"].as_str() {
            assert_eq!(ids(&client, &format!("{path}?limit=1&cursor={cursor}")).await, all[1..2], "{path}");
        } else {
            assert_eq!(all.len(), 1, "{path}");
        }
        assert_eq!(problem(&client.get(&format!("{path}?limit=-1")).await, "validation_failed"), ["?limit"]);
        assert_eq!(problem(&client.get(&format!("{path}?cursor=x")).await, "validation_failed"), ["?cursor"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn page_limits_are_capped_or_refused() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();

    create(&client, json!({"image": "web:1"})).await;
    let copies = "insert into instances
        select (jsonb_populate_record(i, jsonb_build_object('id', gen_random_uuid(), 'name', 'copy-' || n))).*
        from instances i, generate_series(1, 510) n";
    cluster.sql().await.execute(copies, &[]).await.unwrap();
    for (limit, expected) in [
        ("", 50),
        ("?limit=", 50),
        ("?limit=0", 50),
        ("?limit=1", 1),
        ("?limit=51", 51),
        ("?limit=500", 500),
        ("?limit=501", 500),
        ("?limit=4294967296", 500),
        ("?limit=99999999999999999999999999", 500),
    ] {
        let list = client.get(&format!("/instances{limit}")).await.expect(200).body;
        assert_eq!(items(&list).len(), expected, "{limit}");
        assert!(list["next_cursor"].is_string(), "{limit}");
    }
    for limit in ["-1", "ten", "1.5", "1e2", "0x10", "1_000", "-", "1%20", "NaN", "٣"] {
        let answer = client.get(&format!("/instances?limit={limit}")).await;
        assert_eq!(problem(&answer, "validation_failed"), ["?limit"], "{limit}");
    }
    let (mut listed, mut path) = (HashSet::new(), "/instances?limit=200".to_owned());

    loop {
        let page = client.get(&path).await.expect(200).body;
        assert!(items(&page).into_iter().all(|id| listed.insert(id)), "an item came twice");
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/instances?limit=200&cursor={cursor}");
    }

    assert_eq!(listed.len(), 511);
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_select_and_deleted_instances_are_listed_on_request() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let worker = cluster.work();
    let running = |name: &str, labels: Value| json!({"image": "web:1", "name": name, "labels": labels});
    let a = client.create_running(running("a", json!({"app": "web", "tier": "1"}))).await;
    let b = client.create_running(running("b", json!({"app": "web", "tier": "2", "x": "y=z=z"}))).await;
    let failed = client.post("/instances", json!({"image": "missing/x", "name": "c"})).await;
    client.wait_for_job(&failed.job()).await;
    let gone = client.create_running(running("d", json!({"app": "web"}))).await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (a_id, b_id, c_id, gone_id) = (text(&a["id"]), text(&b["id"]), failed.instance(), text(&gone["id"]));
    client.delete_fully(&gone_id).await;
    // No worker runs this job.
    worker.terminate();
    let e_id = create(&client, running("e", json!({"app": "db"}))).await;
    let (network, host) = (text(&a["network"]["id"]), text(&a["host"]["id"]));

    let (all, all_placed) = ([&e_id, &c_id, &b_id, &a_id], [&c_id, &b_id, &a_id]);
    for (query, expected) in [
        ("", &all[..]),
        ("?status=running", &[&b_id, &a_id]),
        ("?status=failed", &[&c_id]),
        ("?status=pending", &[&e_id]),
        ("?status=stopped", &[]),
        ("?status=deleted", &[&gone_id]),
        ("?status=", &all),
        ("?name=a", &[&a_id]),
        ("?name=unused", &[]),
        ("?name=d", &[]),
        ("?name=d&status=deleted", &[&gone_id]),
        ("?name=A", &[]),
        ("?name=%25", &[]),
        ("?label=app=web", &[&b_id, &a_id]),
        ("?label=app%3Dweb", &[&b_id, &a_id]),
        ("?label=app=web&label=tier=2", &[&b_id]),
        ("?label=tier=1&label=tier=2", &[]),
        ("?label=app=", &[]),
        ("?label=x=y=z=z", &[&b_id]),
        ("?label=", &all),
        ("?label", &all),
        ("?label=&label=tier=2", &[&b_id]),
        ("?name=&name=a", &[&a_id]),
        ("?label=app=web&name=a&status=running", &[&a_id]),
        ("?network=default", &all),
        (&format!("?network={network}"), &all),
        (&format!("?network={}", network.to_uppercase()), &all),
        ("?network=nowhere", &[]),
        ("?host=h1", &all_placed),
        (&format!("?host={host}"), &all_placed),
        (&format!("?host={}", host.to_uppercase()), &all_placed),
        ("?host=h2", &[]),
        ("?host=h1&status=deleted", &[&gone_id]),
    ] {
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        assert_eq!(ids(&client, &format!("/instances{query}")).await, expected, "{query}");
    }
    for (query, pointer) in [
        ("?status=gone", "?status"),
        ("?status=Running", "?status"),
        ("?label=app", "?label"),
        ("?label==web", "?label"),
        ("?name=a&name=b", "?name"),
    ] {
        assert_eq!(
            problem(&client.get(&format!("/instances{query}")).await, "validation_failed"),
            [pointer],
            "{query}"
        );
    }

    let deletion = text(&client.get(&format!("/instances/{gone_id}")).await.expect(200).body["job_id"]);
    assert_eq!(ids(&client, "/jobs?kind=delete").await, [deletion.as_str()]);
    assert_eq!(ids(&client, "/jobs?status=failed").await, [failed.job()]);
    assert_eq!(ids(&client, &format!("/jobs?instance={c_id}")).await, [failed.job()]);
    assert_eq!(ids(&client, &format!("/jobs?instance={}", c_id.to_uppercase())).await, [failed.job()]);
    assert_eq!(ids(&client, "/jobs?kind=&kind=delete&status=&instance=").await, [deletion.as_str()]);
    assert_eq!(ids(&client, &format!("/jobs?instance={gone_id}")).await.len(), 2);
    assert_eq!(ids(&client, &format!("/jobs?instance={gone_id}&kind=provision&status=succeeded")).await.len(), 1);
    assert_eq!(ids(&client, "/jobs?status=queued").await.len(), 1);
    for query in ["?status=gone", "?instance=x"] {
        problem(&client.get(&format!("/jobs{query}")).await, "validation_failed");
    }

    // A day later it is removed.
    let sql = cluster.sql().await;
    let path = format!("/instances/{gone_id}");
    let shift = async |by: &str| {
        let shift = format!("update instances set deleted_at = now() - interval '{by}' where id::text = $1");
        assert_eq!(sql.execute(&shift, &[&gone_id]).await.unwrap(), 1);
    };
    shift("23 hours 59 minutes").await;
    assert_eq!(client.get(&path).await.expect(200).body["status"], "deleted");
    assert_eq!(client.delete(&path).await.expect(202).job(), deletion);
    shift("24 hours 1 second").await;
    problem(&client.get(&path).await, "not_found");
    problem(&client.delete(&path).await, "not_found");
    assert_eq!(ids(&client, "/instances?status=deleted").await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_admin_lists_other_tenants_objects() {
    let cluster = Cluster::simulated().await;
    let (_api, acme) = cluster.serve();

    let replica = cluster.spawn("serve");
    let rival = acme.with_key(&cluster.key("rival", "admin"));
    let ours = create(&acme, json!({"image": "web:1"})).await;
    let theirs = create(&rival, json!({"image": "web:1"})).await;
    let tenant = rival.get("/keys/self").await.body["tenant_id"].as_str().unwrap().to_owned();
    assert_eq!(ids(&acme, "/instances").await, std::slice::from_ref(&ours));
    assert_eq!(ids(&acme, &format!("/instances?tenant_id={tenant}")).await, std::slice::from_ref(&theirs));

    // Through another replica, too.
    let elsewhere = Client::new(&base_url(&replica), &acme.key);
    assert_eq!(ids(&elsewhere, "/instances").await, [ours]);

    for path in ["/jobs", "/networks", "/keys"] {
        let (own, others) = (ids(&acme, path).await, ids(&acme, &format!("{path}?tenant_id={tenant}")).await);
        assert_eq!(others, ids(&rival, path).await, "{path}");
        assert!(!own.is_empty() && !others.is_empty() && own.iter().all(|id| !others.contains(id)), "{path}");
    }
    let scopes = json!(["instances:read", "networks:read", "keys:read"]);
    let made = acme.post("/keys", json!({"name": "reader", "scopes": scopes})).await.expect(201).body;
    let reader = acme.with_key(made["key"].as_str().unwrap());
    let own = reader.get("/keys/self").await.body["tenant_id"].as_str().unwrap().to_owned();
    for path in ["/instances", "/jobs", "/networks", "/keys"] {
        let refused = reader.get(&format!("{path}?tenant_id={tenant}")).await;
        assert!(matches!(refused.code(), "forbidden" | "validation_failed"), "{path}: {}", refused.text);
        let own = own.to_uppercase();
        assert_eq!(ids(&reader, &format!("{path}?tenant_id={own}")).await, ids(&acme, path).await, "{path}");
        assert_eq!(problem(&acme.get(&format!("{path}?tenant_id=x")).await, "validation_failed"), ["?tenant_id"]);
    }
}
