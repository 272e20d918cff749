//! Every statement of the project on a migrated database: Postgres can prepare it. Of a `.sql` file also its header
//! names the parameters that Postgres finds in it, and its plan does not read a large table from end to end.

use std::{collections::BTreeMap, path::Path};

use proc_macro2::{TokenStream, TokenTree};
use serde_json::Value;

use crate::support::Cluster;

/// Statements that may read all jobs or all instances, with the reason.
const WHOLE_TABLE: &[(&str, &str)] = &[(
    "core/queue/mark_silent_instances.sql",
    "has to find the instances of every silent host, and a time of its hosts that is a parameter counts as one of many",
)];

/// The text of each `.sql` file by its path under `src/`.
fn sql_files() -> BTreeMap<String, String> {
    files("sql")
}

/// The text of each file with this extension by its path under `src/`.
fn files(wanted: &str) -> BTreeMap<String, String> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
    let (mut folders, mut files) = (vec![root.to_owned()], BTreeMap::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == wanted) {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                files.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    files
}

/// The types that a header declares, in order: of a line `-- $1 host name text, a note` the word before the first
/// comma.
fn declared_types(path: &str, sql: &str) -> Vec<String> {
    let lines = sql.lines().take_while(|line| line.starts_with("--"));
    let parameters = lines.filter_map(|line| line.strip_prefix("-- $")).enumerate();
    let declared = parameters.map(|(n, line)| {
        let declaration = line.split(',').next().unwrap_or_default();
        let words: Vec<&str> = declaration.split_whitespace().collect();
        assert!(words.len() >= 3, "{path}: a parameter has a name and a type: {line}");
        assert_eq!(words[0].parse(), Ok(n + 1), "{path}: parameters are declared in order: {line}");
        words[words.len() - 1].to_owned()
    });
    declared.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_files_declare_the_parameters_that_postgres_finds() {
    let cluster = Cluster::simulated().await;
    let sql = cluster.sql().await;
    let files = sql_files();
    assert!(files.contains_key("core/queue/claim.sql"), "the files were not found");
    for (path, text) in files {
        assert!(text.starts_with("-- "), "{path}: the header says what the statement does");

        let statement = sql.prepare(&text).await.unwrap_or_else(|error| panic!("{path}: {error:?}"));

        let found: Vec<u32> = statement.params().iter().map(tokio_postgres::types::Type::oid).collect();
        let declared = declared_types(&path, &text);
        // `bigint` and `int8` are one type.
        let oids =
            "select array(select to_regtype(name)::oid from unnest($1::text[]) with ordinality t (name, n) order by n)";
        let oids: Vec<Option<u32>> = sql.query_one(oids, &[&declared]).await.unwrap().get(0);
        let oids: Vec<u32> = oids.into_iter().map(Option::unwrap_or_default).collect();
        assert_eq!(oids, found, "{path}: declared {declared:?}, found {:?}", statement.params());
    }
}

/// Adds the string literals of a piece of Rust to `into`.
fn literals(tokens: TokenStream, into: &mut Vec<String>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => literals(group.stream(), into),
            TokenTree::Literal(literal) => {
                if let syn::Lit::Str(text) = syn::Lit::new(literal) {
                    into.push(text.value());
                }
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_in_rust_code_fit_the_schema() {
    const VERBS: [&str; 5] = ["select ", "insert into ", "update ", "delete from ", "with "];
    let cluster = Cluster::simulated().await;
    let sql = cluster.sql().await;
    let mut prepared = 0;
    for (path, text) in files("rs").into_iter().filter(|(path, _)| path.starts_with("core/")) {
        // Unit tests are the last part of a file.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let mut texts = Vec::new();
        literals(code.parse().unwrap_or_else(|error| panic!("{path}: {error}")), &mut texts);
        for statement in texts.iter().filter(|text| VERBS.iter().any(|verb| text.starts_with(verb))) {
            sql.prepare(statement).await.unwrap_or_else(|error| panic!("{path}: {statement}: {error:?}"));
            prepared += 1;
        }
    }
    assert!(prepared > 20, "only {prepared} statements were found");
}

/// The tables that a plan reads from end to end.
fn scanned_tables(plan: &Value, into: &mut Vec<String>) {
    if plan["Node Type"] == "Seq Scan" {
        into.extend(plan["Relation Name"].as_str().map(ToOwned::to_owned));
    }
    for inner in plan["Plans"].as_array().into_iter().flatten() {
        scanned_tables(inner, into);
    }
}

/// Ten thousand jobs of five thousand instances on twenty hosts, nearly all finished, as after some weeks of use.
async fn fill(sql: &tokio_postgres::Client) {
    sql.batch_execute(
        "insert into tenants (id, name) select gen_random_uuid(), 't' || n from generate_series(1, 50) n;
         insert into hosts (id, name) select gen_random_uuid(), 'h' || n from generate_series(1, 20) n;
         insert into instances (id, tenant_id, name, image, cpu_millis, memory_mib, network_id, network_name, cidr,
                                address, mac, job_id, host_id, status)
           select gen_random_uuid(), t.id, 'i' || n, 'web:1', 100, 128, gen_random_uuid(), 'default', '10.0.0.0/8',
                  '10.1.1.1', '02:00', gen_random_uuid(), h.id, 'running'
           from generate_series(1, 5000) n
           join (select id, row_number() over () as no from tenants) t on t.no = n % 50 + 1
           join (select id, row_number() over () as no from hosts) h on h.no = n % 20 + 1;
         insert into jobs (id, kind, tenant_id, instance_id, host_id, generation, seq, status, finished_at)
           select gen_random_uuid(), 'start', tenant_id, id, host_id, 1, seq, 'succeeded', now()
           from instances, generate_series(1, 2) seq;
         update jobs set status = 'queued', finished_at = null
           where id in (select id from jobs where seq = 2 order by id limit 100);
         update jobs set status = 'running', finished_at = null, lease_id = gen_random_uuid(),
             lease_boot = gen_random_uuid(), lease_until = now() + interval '30 s'
           where id in (select id from jobs where seq = 2 and status = 'succeeded' order by id limit 100);
         analyze",
    )
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn generic_plans_of_sql_files_scan_no_large_table() {
    let cluster = Cluster::simulated().await;
    let sql = cluster.sql().await;
    fill(&sql).await;
    // The plan that a prepared statement ends with: it does not depend on the arguments.
    sql.batch_execute("set plan_cache_mode = force_generic_plan; set jit = off").await.unwrap();
    let mut scanning = BTreeMap::new();
    for (path, text) in sql_files() {
        let arguments = vec!["null"; declared_types(&path, &text).len()].join(", ");
        let execute = if arguments.is_empty() { "execute s".to_owned() } else { format!("execute s({arguments})") };
        sql.batch_execute(&format!("prepare s as\n{text}")).await.unwrap();

        let plan = sql.query_one(&format!("explain (format json) {execute}"), &[]).await.unwrap();

        let mut tables = Vec::new();
        scanned_tables(&plan.get::<_, Value>(0)[0]["Plan"], &mut tables);
        tables.retain(|table| ["jobs", "instances"].contains(&table.as_str()));
        if !tables.is_empty() {
            scanning.insert(path, tables);
        }
        sql.batch_execute("deallocate s").await.unwrap();
    }
    for (path, reason) in WHOLE_TABLE {
        assert!(scanning.remove(*path).is_some(), "{path} scans no table: it is no exception any more ({reason})");
    }
    assert_eq!(scanning, BTreeMap::new());
}
