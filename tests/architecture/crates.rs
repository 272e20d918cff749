//! Third-party crates, and what the process reaches outside of itself: each is used in one place.

use app::telemetry::metrics::{Kind, METRICS, Metric};

use crate::{
    source::{Source, read, sources, within},
    violation::{Rule, Violation, assert_none, violations},
};

/// Crates or modules, and the one home of each. The row with the longest name decides. No home: nowhere.
const HOMES: &[(&[&str], &[&str])] = &[
    (&["actix", "actix_web", "actix_http", "actix_rt", "actix_service"], &["src/api/", "src/http/"]),
    (&["tokio_postgres", "deadpool_postgres", "tokio_postgres_rustls"], &["src/core/db/"]),
    // Ids and enums are columns.
    (&["tokio_postgres::types", "postgres_types"], &["src/core/"]),
    (&["refinery"], &["src/core/db/migrate.rs"]),
    (
        &["fred"],
        &[
            "src/core/redis.rs",
            "src/core/redis/",
            "src/core/read_your_writes.rs",
            "src/core/queue/notify/",
            "src/core/identity/",
        ],
    ),
    (&["bollard"], &["src/backend/docker/"]),
    (&["clap"], &["src/config/", "src/cli.rs", "src/main.rs"]),
    (&["tracing_subscriber", "tracing_appender"], &["src/telemetry/"]),
    (&["std::process::Command", "std::process::*", "process::Command", "tokio::process", "nix::unistd::fork"], &[]),
];
const ENVIRONMENT_HOMES: &[&str] = &["src/config/", "src/cli.rs"];
const OTHER_TLS: &[&str] = &["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls"];
const LIST_OF_METRICS: &str = "src/telemetry/metrics.rs";

pub fn homes(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    // A single word in code may be a variable.
    for path in source.paths.iter().filter(|path| path.is.segments.len() > 1 || path.is.import.is_some()) {
        let target = path.is.segments.join("::");
        let reach = |names: &[&str]| names.iter().filter(|name| within(&target, name)).map(|name| name.len()).max();
        let row = HOMES.iter().filter(|row| reach(row.0).is_some()).max_by_key(|row| reach(row.0));
        if row.is_some_and(|(_, homes)| !source.is_in(homes)) {
            found.push(Violation::at(source, Rule::Home, path, target));
        }
    }
    found
}

pub fn environment(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    if !source.is_in(ENVIRONMENT_HOMES) {
        let paths = source.paths.iter().map(|path| (path.line, path.is.segments.join("::")));
        found.extend(paths.filter(|(_, path)| within(path, "std::env")));
        found.extend(source.variables.iter().map(|variable| (variable.line, format!("env = {:?}", variable.is))));
    }
    for call in &source.macros {
        // What cargo sets is no setting; folders of the build are for tests only.
        let prefix = if call.is_test { "CARGO_" } else { "CARGO_PKG_" };
        let is_cargo = call.is.first.as_ref().is_some_and(|name| name.starts_with(prefix));
        if call.is.name == "option_env" || call.is.name == "env" && !is_cargo {
            found.push((call.line, format!("{}!", call.is.name)));
        }
    }
    let readers = ["from_env", "try_from_env", "from_default_env", "try_from_default_env"];
    let words = source.words.iter().filter(|word| readers.contains(&word.is.0.as_str()));
    found.extend(words.map(|word| (word.line, word.is.0.clone())));
    found.into_iter().map(|(line, what)| Violation::new(Rule::Environment, &source.path, line, what)).collect()
}

fn tls(lock: &str) -> Vec<Violation> {
    let line = |name: &str| lock.lines().position(|line| line == format!("name = \"{name}\""));
    let other = OTHER_TLS.iter().filter_map(|name| line(name).map(|line| (line + 1, format!("package {name}"))));
    let none = line("ring").is_none().then(|| (1, "no package ring".to_owned()));
    other.chain(none).map(|(line, what)| Violation::new(Rule::Tls, "Cargo.lock", line, what)).collect()
}

fn undocumented(source: &Source, pages: &str) -> Vec<Violation> {
    let is_known = |name: &str| pages.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name);
    let unknown = source.variables.iter().filter(|variable| !is_known(&variable.is));
    unknown.map(|variable| Violation::at(source, Rule::Documented, variable, variable.is.clone())).collect()
}

/// What is recorded under a name that the list of metrics lacks, or has as another kind.
fn unlisted(source: &Source, metrics: &[Metric]) -> Vec<Violation> {
    let mut found = Vec::new();
    for call in source.macros.iter().filter(|call| !call.is_test) {
        let kind = match call.is.name.as_str() {
            "counter" => Kind::Counter,
            "gauge" => Kind::Gauge,
            "histogram" => Kind::Histogram,
            _ => continue,
        };
        // A name in a variable is a literal elsewhere, which the list of those recorded nowhere finds.
        let Some(recorded) = &call.is.first else { continue };
        if !metrics.iter().any(|metric| metric.kind == kind && metric.name == recorded) {
            found.push(Violation::at(source, Rule::Metric, call, format!("{} {recorded}", call.is.name)));
        }
    }
    found
}

/// Listed metrics that nothing records, or that the page on operations lacks.
fn unused(sources: &[Source], metrics: &[Metric], operations: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    for Metric { name, .. } in metrics {
        let mut others = sources.iter().filter(|source| source.path != LIST_OF_METRICS);
        if !others.any(|source| source.literals.iter().any(|literal| literal.is.value == *name)) {
            found.push(Violation::new(Rule::Metric, LIST_OF_METRICS, 1, format!("{name} is recorded nowhere")));
        }
        if !operations.contains(&format!("`{name}`")) {
            found.push(Violation::new(Rule::Metric, LIST_OF_METRICS, 1, format!("{name} is not documented")));
        }
    }
    found
}

#[test]
fn third_party_crates_have_one_home() {
    assert_none(violations(homes));
}

#[test]
fn only_config_reads_the_environment() {
    assert_none(violations(environment));
}

#[test]
fn there_is_one_tls_provider() {
    assert_none(tls(&read("Cargo.lock")));
}

#[test]
fn every_variable_is_documented() {
    let pages = read("README.md") + &read("docs/configuration.md");
    assert_none(violations(|source| undocumented(source, &pages)));
}

#[test]
fn every_metric_is_listed_recorded_and_documented() {
    let sources = sources();
    let mut found: Vec<_> = sources.iter().flat_map(|source| unlisted(source, METRICS)).collect();
    found.extend(unused(sources, METRICS, &read("docs/operations.md")));
    assert_none(found);
}

mod catches {
    use super::*;
    use crate::violation::{
        EXCEPTIONS,
        cases::{assert_catches, assert_lets_pass},
    };

    #[test]
    fn crates_away_from_home() {
        assert_catches(
            homes,
            &[
                ("src/core/queue/store.rs", "use actix_web::web;"),
                ("src/worker/mod.rs", "#[actix_web::main]\nasync fn f() {}"),
                ("src/core/queue/store.rs", "fn f(row: &tokio_postgres::Row) {}"),
                ("src/core/queue/store.rs", "use ::deadpool_postgres;"),
                ("src/api/jobs.rs", "impl postgres_types::ToSql for A {}"),
                ("src/core/db/pool.rs", "use refinery as r;"),
                ("src/worker/mod.rs", "use {std::fmt, fred::{clients::Client}};"),
                ("src/worker/mod.rs", "tokio::select! { a = fred::clients::Client::new() => {} }"),
                ("src/core/queue/store.rs", "use fred::clients::Client;"),
                ("src/backend/simulated/mod.rs", "use bollard::Docker;"),
                ("src/api/mod.rs", "use clap::Parser;"),
                ("src/commands/dev.rs", "use std::{process::{Command, ExitCode}};"),
                ("src/commands/dev.rs", "fn f() { process::Command::new(\"ip\"); }"),
                ("src/backend/docker/mod.rs", "use tokio::{fs, process};"),
            ],
        );
        assert_lets_pass(
            homes,
            &[
                ("src/api/jobs.rs", "use actix_web::web;"),
                ("src/core/queue/notify/notifier.rs", "use fred::clients::Client;"),
                ("src/core/id.rs", "use tokio_postgres::types::{FromSql, ToSql};"),
                ("src/core/maintenance.rs", "fn f(c: &RedisConfig) { c.fred(); let fred = 1; g(fred) }"),
                (
                    "src/commands/dev.rs",
                    "use std::process::ExitCode; use crate::cli::Command; fn f() { std::process::id(); }",
                ),
            ],
        );
    }

    #[test]
    fn reading_the_environment_elsewhere() {
        assert_catches(
            environment,
            &[
                ("src/worker/mod.rs", "fn f() { std::env::var(\"HOME\"); }"),
                ("src/worker/mod.rs", "use std::{env, fs};"),
                ("src/worker/mod.rs", "const C: &str = env!(\"HOME\");"),
                ("src/worker/mod.rs", "info!(home = env!(\"HOME\"));"),
                ("src/worker/mod.rs", "const D: &str = env!(\"CARGO_MANIFEST_DIR\");"),
                ("src/config/mod.rs", "const C: Option<&str> = option_env!(\"HOME\");"),
                ("src/commands/dev.rs", "struct A { #[arg(long, env = \"APP_X\")] x: String }"),
                ("src/commands/dev.rs", "fn f() { EnvFilter::from_default_env(); }"),
            ],
        );
        assert_lets_pass(
            environment,
            &[
                ("src/cli.rs", "struct A { #[arg(long, env = \"APP_X\")] x: String }"),
                ("src/config/mod.rs", "use std::env;"),
                ("src/worker/mod.rs", "#[cfg(test)] mod tests { const D: &str = env!(\"CARGO_MANIFEST_DIR\"); }"),
                ("src/worker/mod.rs", "const V: &str = env!(\"CARGO_PKG_VERSION\"); let env = \"text\";"),
            ],
        );
    }

    #[test]
    fn a_second_tls_provider() {
        let lock = |names: &[&str]| names.iter().map(|n| format!("[[package]]\nname = \"{n}\"\n")).collect::<String>();
        for wrong in
            [&["ring", "openssl-sys"][..], &["ring", "native-tls"], &["aws-lc-rs"], &["ring", "aws-lc-sys"], &[]]
        {
            assert!(!tls(&lock(wrong)).is_empty(), "not caught: {wrong:?}");
        }
        assert!(tls(&lock(&["ring", "rustls", "openssl-probe"])).is_empty());
    }

    #[test]
    fn undocumented_variables() {
        let text = "struct A {\n    #[arg(long, env = \"APP_LISTEN\")]\n    a: String,\n}";
        let source = Source::new("src/config/http.rs", text);
        let found = undocumented(&source, "`APP_LISTEN_X`, MY_APP_LISTEN");
        assert!(found[0].to_string().starts_with("src/config/http.rs:2: APP_LISTEN:"));
        assert!(undocumented(&source, "| `APP_LISTEN` | where |").is_empty());
    }

    #[test]
    fn unlisted_and_unused_metrics() {
        let metrics = [Metric { kind: Kind::Counter, name: "a_total", help: "Counts." }];
        let source = |text: &str| Source::new("src/worker/mod.rs", &format!("fn f() {{ {text} }}"));
        let check = |text| unlisted(&source(text), &metrics).len();
        assert_eq!(check("metrics::counter!(\"b_total\").increment(1);"), 1, "not there");
        assert_eq!(check("metrics::gauge!(\"a_total\").set(1.0);"), 1, "there, as another kind");
        assert_eq!(check("::metrics::counter!(\"a_total\", &labels).increment(1); gauge!(name, \"x\" => y)"), 0);

        let uses = |text, page: &str| unused(&[source(text)], &metrics, page).len();
        assert_eq!(uses("g(\"a_total\")", "| `a_total` |"), 0);
        assert_eq!(uses("g(\"b_total\")", "| `a_total` |"), 1, "recorded nowhere");
        assert_eq!(uses("g(\"a_total\")", "| `a_totals` |"), 1, "not documented");
    }

    #[test]
    fn an_exception_is_for_its_own_file_only() {
        let stray = |path| homes(&Source::new(path, "use actix_web::dev::ServerHandle;")).remove(0);
        let is_allowed = |path| EXCEPTIONS.iter().any(|exception| stray(path).is_allowed_by(exception));
        assert!(is_allowed("src/startup/api.rs"));
        assert!(!is_allowed("src/commands/serve.rs"));
    }
}
