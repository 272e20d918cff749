//! The size of pages: none is larger than a mebibyte unless it has only one item, and no item is lost between them.

use std::collections::HashSet;

use futures_util::future;
use serde_json::json;

use crate::support::{App, Client, Cluster};

const MIB: usize = 1024 * 1024;

/// Reads all pages of a list, and returns the size and the number of items of each.
async fn pages(client: &Client, path: &str) -> Vec<(usize, usize)> {
    let (mut pages, mut listed, mut cursor) = (Vec::new(), HashSet::new(), String::new());
    loop {
        let page = client.get(&format!("{path}?limit=500&cursor={cursor}")).await.expect(200);
        let items = page.body["items"].as_array().unwrap();
        assert!(items.iter().all(|item| listed.insert(item["id"].to_string())), "{path}: an item came twice");
        assert!(items.is_sorted_by(|newer, older| newer["id"].as_str() > older["id"].as_str()), "{path}");
        pages.push((page.text.len(), items.len()));
        match page.body["next_cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => return pages,
        }
    }
}

/// Asserts that all of them have this number of items, and each but the last at least this many bytes (sizes are
/// estimated, and never too small).
#[track_caller]
fn assert_filled(what: &str, pages: &[(usize, usize)], items: usize, least: usize) {
    assert_eq!(pages.iter().map(|(_, items)| items).sum::<usize>(), items, "{what}: {pages:?}");
    assert!(pages.iter().all(|(bytes, _)| *bytes <= MIB), "{what}: {pages:?}");
    let (_, full) = pages.split_last().unwrap();
    assert!(!full.is_empty() && full.iter().all(|(bytes, _)| *bytes >= least), "{what}: {pages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_end_before_they_are_too_large() {
    let cluster = Cluster::simulated().await;
    let (_api, client) = cluster.serve();
    let sql = cluster.sql().await;
    let run = async |statement: &str| sql.execute(statement, &[]).await.unwrap();
    client.post("/instances", json!({"image": "web:1"})).await.instance();
    let copies = "insert into instances
        select (jsonb_populate_record(i, jsonb_build_object('id', gen_random_uuid(), 'name', 'copy-' || n))).*
        from instances i, generate_series(1, 99) n";
    run(copies).await;
    // The largest that is accepted now, and one whose every byte becomes six in JSON.
    for (value, least) in [("repeat('x', 30000)", 980_000), ("repeat(chr(1), 10000)", 920_000)] {
        run(&format!("update instances set env = jsonb_build_object('A', {value}, 'B', {value})")).await;
        assert_filled(value, &pages(&client, "/instances").await, 100, least);
    }
    // One of an earlier version, larger than a page.
    run("update instances set env = jsonb_build_object('A', repeat('x', 2000000)) where name = 'copy-7'").await;
    let all = pages(&client, "/instances").await;
    assert_eq!(all.iter().filter(|(bytes, items)| *bytes > MIB && *items == 1).count(), 1, "{all:?}");
    assert_eq!(all.iter().map(|(_, items)| items).sum::<usize>(), 100);
    // A page that is small enough has as many items as the limit allows.
    let by_five = client.get("/instances?limit=5").await.expect(200).body;
    assert_eq!(by_five["items"].as_array().unwrap().len(), 5);

    let steps =
        "jsonb_build_array(jsonb_build_object('name', 'image', 'status', 'failed', 'started_at', '2026-01-01T00:00:00Z',
            'finished_at', null, 'detail', repeat('x', 2048)))";
    let jobs = "insert into jobs (id, kind, tenant_id, instance_id, generation, seq)
        select gen_random_uuid(), kind, tenant_id, instance_id, generation, n + 1 from jobs, generate_series(1, 699) n";
    run(jobs).await;
    let ordinary = pages(&client, "/jobs").await;
    assert_eq!(ordinary.iter().map(|(_, items)| *items).collect::<Vec<_>>(), [500, 200]);
    run(&format!("update jobs set steps = {steps}")).await;
    assert_filled("jobs", &pages(&client, "/jobs").await, 700, 900_000);

    let keys = "insert into api_key
        select (jsonb_populate_record(k, jsonb_build_object('id', gen_random_uuid(), 'key_hash',
                '\\x' || encode(sha256(n::text::bytea), 'hex')))).*
        from api_key k, generate_series(1, 999) n";
    run(keys).await;
    let ordinary = pages(&client, "/keys").await;
    assert_eq!(ordinary.iter().map(|(_, items)| *items).collect::<Vec<_>>(), [500, 500]);
    run("update api_key set name = repeat(chr(1), 255)").await;
    assert_filled("keys", &pages(&client, "/keys").await, 1000, 750_000);
}

/// Returns the peak memory of the process, in MiB.
fn peak_mib(app: &App) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", app.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_large_instances_take_little_memory() {
    let cluster = Cluster::simulated().await;
    let (api, client) = cluster.serve();
    let sql = cluster.sql().await;
    client.post("/instances", json!({"image": "web:1"})).await.instance();
    // As an earlier version accepted them: a megabyte each.
    let copies = "insert into instances
        select (jsonb_populate_record(i, jsonb_build_object('id', gen_random_uuid(), 'name', 'copy-' || n,
                'env', (select jsonb_object_agg('K' || k, repeat('v', 32000)) from generate_series(1, 31) k)))).*
        from instances i, generate_series(1, 40) n";
    sql.execute(copies, &[]).await.unwrap();
    client.get("/instances?limit=1").await.expect(200);
    let before = peak_mib(&api);

    let lists = future::join_all((0..4).map(|_| client.get("/instances?limit=500"))).await;

    let grown = peak_mib(&api) - before;
    assert!(lists.iter().all(|list| list.status == 200 && list.text.len() < 2 * MIB));
    // It used to be some 330.
    assert!(grown < 64, "{grown} MiB more, after {before}");
}
