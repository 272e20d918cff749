//! Where SQL is, and what form it has.
//!
//! SQL is recognised in string literals by its words and placeholders. A statement of up to 15 lines is one literal in
//! a store or statement file; a longer one is a `.sql` file beside it. None is assembled by macros, so that each can be
//! read, searched and prepared as it is sent.

use crate::{
    source::{Found, Literal, Source, files, read, sources},
    violation::{Rule, Violation, assert_none, violations},
};

/// Besides every `store.rs` in `core`. `core/queue/notify` has none: it is of Redis.
const SQL_HOMES: &[&str] = &[
    "src/core/identity/change.rs",
    "src/core/identity/create.rs",
    "src/core/idempotency.rs",
    "src/core/instances/create.rs",
    "src/core/instances/delete.rs",
    "src/core/instances/observe.rs",
    "src/core/queue/",
];
const SQL_LINES: usize = 15;
const ASSEMBLING: &[&str] = &["concat", "format", "format_args", "write", "writeln", "macro_rules"];

pub fn sql(source: &Source) -> Vec<Violation> {
    let is_store = source.path.starts_with("src/core/") && source.path.ends_with("/store.rs");
    if is_store || source.is_in(SQL_HOMES) && !source.is_in(&["src/core/queue/notify/"]) {
        return Vec::new();
    }
    let literals = source.literals.iter().filter(|literal| is_sql(&literal.is.value));
    literals.map(|found| Violation::at(source, Rule::Sql, found, format!("{:?}", excerpt(&found.is.value)))).collect()
}

/// Whether a string reads like SQL, or like a piece of it.
fn is_sql(text: &str) -> bool {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    let words: Vec<&str> = text.split(|c: char| !is_word(c)).filter(|word| !word.is_empty()).collect();
    let pair = |first: &str, second: &str| words.windows(2).any(|pair| pair == [first, second]);
    let after = |word: &str, within: usize, second: &str| {
        let mut firsts = words.iter().enumerate().filter(|(_, first)| **first == word);
        firsts.any(|(at, _)| words[at + 1..].iter().take(within).any(|next| *next == second))
    };
    let verbs = [("insert", "into"), ("delete", "from"), ("for", "update"), ("lock", "table"), ("truncate", "table")];
    let ddl = ["table", "index", "type", "view", "schema"];
    let is_digit = |c: char| c.is_ascii_digit();
    verbs.iter().any(|(first, second)| pair(first, second))
        || ["create", "alter", "drop"].iter().any(|verb| ddl.iter().any(|noun| pair(verb, noun)))
        || after("select", usize::MAX, "from")
        || after("update", 4, "set")
        || text.starts_with("select ") && text.contains(['(', '*', '$'])
        || text.starts_with("with ") && (text.contains(" as (") || text.contains(" as materialized ("))
        || ["begin", "commit", "rollback"].contains(&text.trim_end_matches(';'))
        || text.starts_with("set ") && text.contains(['=', '\''])
        || text.match_indices('$').any(|(at, _)| text[at + 1..].starts_with(is_digit))
}

/// Finds SQL that is too long for a literal, and SQL that a macro puts together.
fn forms(source: &Source, local_macros: &[String]) -> Vec<Violation> {
    let long = source.literals.iter().filter(|found| found.is.lines > SQL_LINES && is_sql(&found.is.value));
    let long =
        long.map(|found| Violation::at(source, Rule::SqlFile, found, format!("SQL of {} lines", found.is.lines)));
    let assembling = source.macros.iter().filter(|call| {
        let is_local = local_macros.contains(&call.is.name);
        is_local || ASSEMBLING.contains(&call.is.name.as_str())
    });
    let assembling = assembling.filter(|call| {
        // The pieces of one statement may only together look like SQL.
        let pieces: Vec<_> = source.literals[call.is.literals.clone()].iter().map(|found| &*found.is.value).collect();
        is_sql(&pieces.join(" "))
    });
    let assembled = assembling
        .map(|call| Violation::at(source, Rule::SqlFile, call, format!("SQL put together by {}!", call.is.name)));
    long.chain(assembled).collect()
}

/// A file of SQL is in `core`, begins with a comment, and is included by a Rust file in its folder.
fn statement_file(path: &str, text: &str, sources: &[Source]) -> Vec<Violation> {
    let (folder, name) = path.rsplit_once('/').unwrap_or_default();
    let is_included = |source: &Source| {
        let is_beside = source.path.rsplit_once('/').is_some_and(|(other, _)| other == folder);
        is_beside
            && source.macros.iter().any(|call| call.is.name == "include_str" && call.is.first.as_deref() == Some(name))
    };
    let mut found = Vec::new();
    if !path.starts_with("src/core/") {
        found.push("SQL outside of core");
    }
    if !text.starts_with("--") {
        found.push("no comment that says what the statement does and what its parameters are");
    }
    if !sources.iter().any(is_included) {
        found.push("no Rust file beside it includes it");
    }
    let mut found: Vec<_> = found.into_iter().map(|what| Violation::new(Rule::SqlFile, path, 1, what)).collect();
    let code: Vec<&str> = text.lines().map(|line| line.split("--").next().unwrap_or_default()).collect();
    found.extend(
        stars(&code.join("\n")).into_iter().map(|(line, what)| Violation::new(Rule::Columns, path, line + 1, what)),
    );
    found
}

/// Finds each `*` that stands for columns.
pub fn columns(source: &Source) -> Vec<Violation> {
    let literals = source.literals.iter().filter(|_| source.path.starts_with("src/core/"));
    literals
        .flat_map(|found: &Found<Literal>| {
            let stars = stars(&found.is.value).into_iter();
            stars.map(|(line, what)| Violation::new(Rule::Columns, &source.path, found.line + line, what))
        })
        .collect()
}

/// In which lines of some SQL, counted from 0, a `*` stands for columns, and what it says up to there.
fn stars(sql: &str) -> Vec<(usize, String)> {
    let sql = sql.to_lowercase();
    let stars = sql.match_indices('*').filter(|(at, _)| stands_for_columns(&sql[..*at], &sql[at + 1..]));
    stars.map(|(at, _)| (sql[..at].matches('\n').count(), excerpt(&sql[..=at]))).collect()
}

/// Whether a `*` with this SQL before and behind it does: it is not that of a product, nor `count(*)`.
fn stands_for_columns(before: &str, behind: &str) -> bool {
    let before = before.trim_end();
    let last = before.rsplit(|c| !is_word(c)).next().unwrap_or_default();
    let of_a_table = before
        .strip_suffix('.')
        .is_some_and(|table| table.trim_end().ends_with(|c| is_word(c) || matches!(c, ')' | '"')));
    // A literal may be the rest of a statement that another one begins.
    let begins = before.is_empty() && behind.trim_start().starts_with("from");
    of_a_table || begins || before.ends_with(',') || ["select", "returning", "distinct", "all"].contains(&last)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn excerpt(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(60).collect()
}

#[test]
fn sql_stays_in_stores_and_statement_files() {
    assert_none(violations(sql));
}

#[test]
fn statements_name_the_columns_of_their_results() {
    assert_none(violations(columns));
}

/// Violations of the form that SQL has, in Rust files and in those of SQL.
pub fn all_forms() -> Vec<Violation> {
    let local: Vec<String> = sources().iter().flat_map(|source| source.local_macros.clone()).collect();
    let files = files("src", ".sql");
    let files = files.iter().flat_map(|path| statement_file(path, &read(path), sources()));
    sources().iter().flat_map(|source| forms(source, &local)).chain(files).collect()
}

#[test]
fn long_sql_is_a_file_and_none_is_assembled() {
    assert_none(all_forms());
}

mod catches {
    use super::*;
    use crate::violation::cases::{assert_catches, assert_lets_pass};

    #[test]
    fn stray_sql() {
        let file = "src/worker/orphans.rs";
        assert_catches(
            sql,
            &[
                (file, "q(\"select id from jobs\")"),
                (file, "q(\"SELECT pg_advisory_lock($1)\")"),
                (file, "q(\"insert into events\n (kind) values ('x')\")"),
                (file, "q(\"update jobs j set status = 'x'\")"),
                (file, "q(\"\\\n   delete\n   from jobs\")"),
                (file, "q(r#\"with a as (values (1)) table a\"#)"),
                (file, "q(\"create table x (id int)\")"),
                (file, "q(concat!(HEAD, \" where id = $1\"))"),
                (file, "tokio::select! { a = q(\"delete from jobs\") => {} }"),
                (file, "batch(\"begin\")"),
                (file, "#[cfg(test)]\nmod tests { fn f() { q(\"delete from jobs\") } }"),
                ("src/api/store.rs", "q(\"select id from jobs\")"),
                ("src/core/maintenance.rs", "q(\"select id from jobs\")"),
                ("src/core/queue/notify/mod.rs", "q(\"select id from jobs\")"),
            ],
        );
        assert_lets_pass(
            sql,
            &[
                ("src/core/hosts/store.rs", "q(\"select id from jobs\")"),
                ("src/core/queue/claim.rs", "q(\"update jobs set status = 'x'\")"),
                (file, "/// select id from jobs\n// \"insert into events\"\nfn f() {} /* delete from jobs */"),
                (file, "ids! { /// Deletes: \"delete from jobs\".\n JobId }"),
                (file, "#[error(\"network could not be set up: {0}\")] struct E;"),
                (file, "f(\"select a backend\", '\"', \"$PATH\");"),
                (file, "f(\"update the file, then start again\"); f(\"with three workers\"); steps.begin(\"undo\");"),
            ],
        );
    }

    #[test]
    fn long_or_assembled_sql() {
        let check = |text: &str| forms(&Source::new("src/core/queue/store.rs", text), &["job_columns".into()]).len();
        let lines = |count: usize| format!("const Q: &str = \"select id{} from jobs\";", "\n".repeat(count - 1));
        assert_eq!(check(&lines(16)), 1);
        assert_eq!(check(&lines(15)), 0);
        assert_eq!(check(&format!("const T: &str = \"prose{}\";", "\n".repeat(30))), 0);
        assert_eq!(check("const Q: &str = concat!(\"select \", COLUMNS, \" from jobs\");"), 1, "only together SQL");
        assert_eq!(check("fn f() { q(&format!(\"select id from {table}\")) }"), 1);
        assert_eq!(check("macro_rules! job_columns { () => { \"select id from jobs\" } }"), 1);
        assert_eq!(check("fn f() { q(job_columns!(\"where id = $1\")) }"), 1);
        assert_eq!(
            check("fn f() { format!(\"{a} of {b}\"); include_str!(\"claim.sql\"); vec![\"select id from a\"]; }"),
            0
        );
    }

    #[test]
    fn statement_files() {
        let sources = [Source::new("src/core/queue/claim.rs", "const Q: &str = include_str!(\"claim.sql\");")];
        let check = |path, text| statement_file(path, text, &sources).len();
        assert_eq!(check("src/core/queue/claim.sql", "-- Claims j.*.\nselect a * 2 from jobs"), 0);
        assert_eq!(check("src/core/queue/claim.sql", "select id from jobs"), 1, "no comment");
        assert_eq!(check("src/core/queue/claim.sql", "-- Claims.\nselect j.* from jobs j"), 1, "columns");
        assert_eq!(check("src/core/hosts/claim.sql", "-- Claims.\nselect id from jobs"), 1, "in another folder");
        assert_eq!(check("src/api/other.sql", "-- Claims.\nselect id from jobs"), 2, "not in core, nor included");
        assert_eq!(check("src/core/queue/other.sql", "-- Claims.\nselect id from jobs"), 1, "included by nothing");
    }

    #[test]
    fn results_without_names() {
        let file = "src/core/hosts/store.rs";
        assert_catches(
            columns,
            &[
                (file, "q(\"select * from jobs\")"),
                (file, "q(\"SELECT j.* FROM jobs j\")"),
                (file, "q(\"select id, * from jobs\")"),
                (file, "q(\"select distinct\n * from jobs\")"),
                (file, "q(\"select (j).* from jobs j\")"),
                (file, "q(r#\"select \"j\".* from jobs j\"#)"),
                (file, "q(\"select \\\n  j . id, j.* from jobs j\")"),
                (file, "q(\"delete from jobs returning *\")"),
                (file, "q(concat!(\"update jobs j set a = b * 2 \", \"returning j.*), x as (\"))"),
                (file, "q(concat!(\"select \", \"* from jobs\"))"),
                ("src/core/queue/claim.rs", "q(r#\"select row_to_json(j.*) from jobs j\"#)"),
            ],
        );
        assert_lets_pass(
            columns,
            &[
                (file, "q(\"select count(*), count ( * ) filter (where a) from jobs\")"),
                (file, "q(\"select 2 * a, (b) * c, $5 * 7 / 6, x::float8 * y from jobs\")"),
                (file, "q(\"select id from jobs\"); // select *\nlet a = *b;"),
            ],
        );
    }
}
