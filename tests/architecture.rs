//! The house rules of `docs/architecture.md`, read off the source: arrows, addresses, SQL, headers, sizes, leftovers.
//!
//! Promises: every violation is reported at once, as `file:line: what: rule`; every exception is a row of `EXCEPTIONS`
//! with its reason, and one that excuses nothing any more fails too. Each rule is a function of one `Source`, so that
//! `mod catches` can show it what it must catch. Refuses: being a compiler. It reads words, paths and string literals;
//! it does not follow aliases. Long, since a rule, its exceptions and what it must catch are read side by side.

use std::{fmt, fs, ops::Range, path::Path};

use app::telemetry::metrics::{Kind, METRICS};

// ---------------------------------------------------------------- the rules' tables

/// What a rule forbids and one file does all the same. `what` is how the violation's text begins.
struct Exception {
    rule: Rule,
    file: &'static str,
    what: &'static str,
    why: &'static str,
}

const EXCEPTIONS: &[Exception] = &[
    excuse(Rule::Arrow, "src/http/body.rs", "http::body::tests → core::instances", "its tests read a real body"),
    excuse(Rule::Sql, "src/core/db/migrate.rs", "", "the migrations' lock and their table"),
    excuse(Rule::Sql, "src/core/db/conn.rs", "", "begin and commit"),
    excuse(Rule::Address, "src/worker/health.rs", "actix_web", "the worker's own small listener"),
    excuse(Rule::Address, "src/roles/parts.rs", "actix_web", "stops the servers it starts: wiring"),
    excuse(Rule::Address, "src/config/database.rs", "tokio_postgres", "the URL is parsed at the door"),
    excuse(Rule::Address, "src/config/redis.rs", "fred", "the URL is parsed at the door"),
    excuse(Rule::Size, "src/roles/parts.rs", "role of", "everything the roles share is put together here"),
    excuse(Rule::Print, "src/roles/keys.rs", "println!", "the key is the command's output"),
    excuse(Rule::Print, "src/roles/migrate.rs", "println!", "the report is the command's output"),
    excuse(Rule::Print, "src/roles/purge.rs", "println!", "the report is the command's output"),
    excuse(Rule::Print, "src/roles/secrets.rs", "println!", "the report is the command's output"),
    excuse(Rule::Print, "src/roles/tenants.rs", "println!", "the report is the command's output"),
];

/// Who may import what. A module's row is the one with its longest prefix; its own subtree is always open to it: the
/// top-level module, or inside `core` the module below it. A module without a row may import nothing else.
struct Arrow {
    from: &'static [&'static str],
    may: &'static [&'static str],
    rule: &'static str,
}

const EVERYTHING: &str = "";

const ARROWS: &[Arrow] = &[
    arrow(&["main", "cli", "roles"], &[EVERYTHING], "the composition roots may import everything"),
    arrow(&["api"], &["core", "http", "config"], "api sees core, http and config; never worker, backend or roles"),
    arrow(
        &["worker"],
        &["core", "http", "backend", "config", "shutdown", "telemetry"],
        "worker sees core, http, backend, config, shutdown and telemetry; never api or roles",
    ),
    arrow(&["backend"], &["core::id", "core::text"], "backend knows only ids, clean texts and its own specs"),
    arrow(&["http"], &["core::invalid", "core::page"], "http knows only core::invalid and core::page"),
    arrow(
        &["telemetry"],
        &["catalogue", "config::environment"],
        "telemetry knows the names of metrics and the format of its logs, and nothing that is counted",
    ),
    arrow(&["lib", "config", "catalogue", "shutdown"], &[], "a leaf imports nothing of ours"),
    arrow(
        &["core::protocol", "core::keeper"],
        &["core", "config"],
        "core imports only core and config: nothing here knows HTTP, containers or roles",
    ),
    arrow(
        &[
            "core::identity",
            "core::instances",
            "core::jobs",
            "core::networks",
            "core::hosts",
            "core::tenants",
            "core::queue",
        ],
        &[
            "core::db",
            "core::id",
            "core::kind",
            "core::page",
            "core::invalid",
            "core::text",
            "core::redis",
            "core::breaker",
            "config",
        ],
        "nouns do not import each other: they meet in core::protocol and core::keeper",
    ),
    arrow(&["core::db", "core::redis"], &["config"], "a connection knows its settings and no noun"),
    arrow(
        &["core::freshness"],
        &["core::db", "core::id", "core::redis", "core::breaker", "config"],
        "freshness knows whose and from where, and no noun",
    ),
    arrow(&["core::watch"], &["core::db"], "the watch knows how to ask, and no noun"),
    arrow(
        &["core::id", "core::invalid", "core::kind", "core::page", "core::text", "core::breaker"],
        &[],
        "plain values import nothing of ours",
    ),
];

/// Third-party crates (and doors to the machine) and the one address of each. No home: nowhere.
const ADDRESSES: &[(&[&str], &[&str])] = &[
    (&["actix", "actix_web", "actix_http", "actix_rt", "actix_service"], &["src/api/", "src/http/"]),
    (&["tokio_postgres", "deadpool_postgres", "tokio_postgres_rustls", "postgres_types"], &["src/core/db/"]),
    (&["refinery"], &["src/core/db/migrate.rs"]),
    (&["fred"], &["src/core/redis.rs", "src/core/freshness.rs", "src/core/queue/", "src/core/identity/"]),
    (&["bollard"], &["src/backend/docker/"]),
    (&["clap"], &["src/config/", "src/cli.rs", "src/main.rs"]),
    (&["tracing_subscriber", "tracing_appender"], &["src/telemetry/"]),
    (&["std::process::Command", "std::process::*", "process::Command", "tokio::process", "nix::unistd::fork"], &[]),
];

const CATALOGUE: &str = "src/catalogue.rs";
const ENVIRONMENT_HOMES: &[&str] = &["src/config/", "src/cli.rs"];
const NAMELESS: &[&str] = &["utils", "util", "helpers", "helper", "common", "misc"];
const MAIN_LINES: usize = 40;
const ROLE_LINES: usize = 100;
const FILE_LINES: usize = 400;
const OTHER_TLS: &[&str] = &["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Arrow,
    Sql,
    Columns,
    Header,
    Address,
    Environment,
    Name,
    Size,
    Leftover,
    Print,
    Tls,
    Documented,
    Metric,
}

impl Rule {
    fn says(self) -> &'static str {
        match self {
            Self::Arrow => "this module has no row in ARROWS, so it may import nothing of ours: give it one",
            Self::Sql => "SQL lives in core's store.rs files and in core/protocol/ (if this is prose, reword it)",
            Self::Columns => {
                "a result names its columns: with `*` a column of the next release breaks what this one has prepared"
            }
            Self::Header => "a file opens with `//!`: what it is, what it promises, what it refuses",
            Self::Address => "a third-party crate has one address (ADDRESSES); processes are started nowhere",
            Self::Environment => "the environment is read in config/ and cli.rs, by clap",
            Self::Name => "no utils, helpers, common, misc: find the missing noun",
            Self::Size => "main ≤ 40 lines, a role ≤ 100, any file ≤ 400: split it",
            Self::Leftover => "no unwrap outside test modules; no todo!, unimplemented!, dbg! or #[ignore] anywhere",
            Self::Print => "standard output belongs to the commands whose answer it is",
            Self::Tls => "one TLS provider, ring: look for the feature that pulled in another",
            Self::Metric => "every metric is in catalogue.rs with its kind and its help",
            Self::Documented => "every environment variable is in README.md",
        }
    }
}

const fn excuse(rule: Rule, file: &'static str, what: &'static str, why: &'static str) -> Exception {
    Exception { rule, file, what, why }
}

const fn arrow(from: &'static [&'static str], may: &'static [&'static str], rule: &'static str) -> Arrow {
    Arrow { from, may, rule }
}

// ---------------------------------------------------------------- one test per rule

#[test]
fn arrows_point_inwards() {
    assert_none(violations(arrows));
}

#[test]
fn sql_stays_in_stores_and_protocol() {
    assert_none(violations(sql));
}

#[test]
fn statements_name_the_columns_of_their_results() {
    assert_none(violations(columns));
}

#[test]
fn every_file_says_what_it_is() {
    assert_none(violations(header));
}

#[test]
fn third_party_crates_have_one_address() {
    assert_none(violations(addresses));
}

#[test]
fn the_environment_is_read_at_the_door() {
    assert_none(violations(environment));
}

#[test]
fn files_are_named_after_a_noun() {
    assert_none(violations(name));
}

#[test]
fn files_stay_small() {
    assert_none(violations(size));
}

#[test]
fn nothing_is_left_over() {
    let mut found = violations(leftovers);
    found.extend(sources("tests").iter().flat_map(leftovers));
    assert_none(found);
}

#[test]
fn only_commands_print() {
    assert_none(violations(prints));
}

#[test]
fn there_is_one_tls_provider() {
    assert_none(tls(&read("Cargo.lock")));
}

#[test]
fn every_variable_is_documented() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap_or_default();
    assert_none(violations(|source| undocumented(source, &readme)));
}

#[test]
fn every_metric_is_catalogued_and_documented() {
    assert_none(violations(|source| uncatalogued(source, METRICS)));
    let (sources, operations) = (sources("src"), read("docs/operations.md"));
    let is_used = |name: &str| {
        let others = sources.iter().filter(|source| source.path != CATALOGUE);
        others.flat_map(|source| &source.literals).any(|literal| literal.text == name)
    };
    let idle: Vec<_> = METRICS.iter().filter(|(_, name, _)| !is_used(name)).collect();
    assert!(idle.is_empty(), "recorded nowhere: {idle:?}");
    let untold: Vec<_> = METRICS.iter().filter(|(_, name, _)| !operations.contains(&format!("`{name}`"))).collect();
    assert!(untold.is_empty(), "not in docs/operations.md: {untold:?}");
}

#[test]
fn every_exception_is_still_needed() {
    let rules = [arrows, sql, columns, header, addresses, environment, name, size, leftovers, prints];
    let found: Vec<Violation> = rules.into_iter().flat_map(violations).collect();
    let stale = EXCEPTIONS.iter().filter(|exception| !found.iter().any(|violation| violation.is_excused_by(exception)));
    let stale: Vec<String> = stale.map(|e| format!("{:?} {} {:?} ({})", e.rule, e.file, e.what, e.why)).collect();
    assert!(stale.is_empty(), "these rows of EXCEPTIONS excuse nothing; remove them:\n{}", stale.join("\n"));
}

// ---------------------------------------------------------------- the rules

fn arrows(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    for path in source.paths() {
        let module = source.module_at(path.at);
        let Some(target) = resolve(&module, &path.segments) else { continue };
        let reach =
            |arrow: &&Arrow| arrow.from.iter().filter(|from| within(&module, from)).map(|from| from.len()).max();
        let row = ARROWS.iter().filter(|arrow| reach(arrow).is_some()).max_by_key(reach);
        let may = row.map_or(&[][..], |row| row.may);
        if !within(&target, own(&module)) && !may.iter().any(|may| within(&target, may)) {
            let what = format!("{module} → {target}");
            found.push(source.violation(Rule::Arrow, path.at, what).because(row.map(|row| row.rule)));
        }
    }
    found
}

/// The subtree that is always open to a module.
fn own(module: &str) -> &str {
    let depth = if within(module, "core") { 2 } else { 1 };
    module.match_indices("::").nth(depth - 1).map_or(module, |(end, _)| &module[..end])
}

/// A path's target from the crate's root: `None` when it leads elsewhere, or down from where it stands.
fn resolve(module: &str, segments: &[&str]) -> Option<String> {
    let ups = segments.iter().take_while(|segment| ["self", "super"].contains(segment)).count();
    let (skip, mut base): (usize, Vec<&str>) = match segments[0] {
        "crate" | "app" => (1, Vec::new()),
        "self" | "super" => (ups, module.split("::").collect()),
        _ => return None,
    };
    let supers = segments[..ups].iter().filter(|segment| **segment == "super").count();
    base.truncate(base.len().saturating_sub(supers));
    base.extend(&segments[skip..]);
    Some(base.join("::"))
}

fn within(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| prefix == EVERYTHING || rest.is_empty() || rest.starts_with("::"))
}

fn sql(source: &Source) -> Vec<Violation> {
    let path = source.path.as_str();
    if path.starts_with("src/core/protocol/") || path.starts_with("src/core/") && path.ends_with("/store.rs") {
        return Vec::new();
    }
    let literals = source.literals.iter().filter(|literal| is_sql(&literal.text));
    literals.map(|l| source.violation(Rule::Sql, l.at, format!("{:?}", excerpt(&l.text)))).collect()
}

/// Whether a string reads like SQL, or like a piece of it.
fn is_sql(text: &str) -> bool {
    let text = text.replace("\\n", " ").replace('\\', " ").to_lowercase();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).collect();
    let pair = |first: &str, second: &str| words.windows(2).any(|pair| pair == [first, second]);
    let after = |word: &str, within: usize, second: &str| {
        let mut firsts = words.iter().enumerate().filter(|(_, first)| **first == word);
        firsts.any(|(at, _)| words[at + 1..].iter().take(within).any(|next| *next == second))
    };
    let verbs = [("insert", "into"), ("delete", "from"), ("for", "update"), ("lock", "table"), ("truncate", "table")];
    let ddl = ["table", "index", "type", "view", "schema"];
    let placeholder =
        || text.match_indices('$').any(|(at, _)| text[at + 1..].starts_with(|c: char| c.is_ascii_digit()));
    verbs.iter().any(|(first, second)| pair(first, second))
        || ["create", "alter", "drop"].iter().any(|verb| ddl.iter().any(|noun| pair(verb, noun)))
        || after("select", usize::MAX, "from")
        || after("update", 4, "set")
        || text.starts_with("select ") && text.contains(['(', '*', '$'])
        || text.starts_with("with ") && (text.contains(" as (") || text.contains(" as materialized ("))
        || ["begin", "commit", "rollback"].contains(&text.trim_end_matches(';'))
        || text.starts_with("set ") && text.contains(['=', '\''])
        || placeholder()
}

/// Finds each `*` that stands for columns: not that of a product, and not `count(*)`.
fn columns(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    for literal in source.literals.iter().filter(|_| source.path.starts_with("src/core/")) {
        let start = literal.at + source.text[literal.at..].find(&literal.text).unwrap_or_default();
        let text = literal.text.replace("\\n", "  ").replace('\\', " ").to_lowercase();
        let stars = text.match_indices('*').filter(|(at, _)| stands_for_columns(&text[..*at], &text[at + 1..]));
        found.extend(stars.map(|(at, _)| source.violation(Rule::Columns, start + at, excerpt(&text[..=at]))));
    }
    found
}

/// Whether a `*` with this SQL before and behind it does.
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

fn header(source: &Source) -> Vec<Violation> {
    let opens = source.text.starts_with("//!");
    if opens { Vec::new() } else { vec![source.violation(Rule::Header, 0, "no header".into())] }
}

fn addresses(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    for path in source.paths() {
        let target = path.segments.join("::");
        for (names, homes) in ADDRESSES {
            let strays = names.iter().any(|name| within(&target, name)) && !source.is_in(homes);
            found.extend(strays.then(|| source.violation(Rule::Address, path.at, target.clone())));
        }
    }
    found
}

fn environment(source: &Source) -> Vec<Violation> {
    let paths = source.paths();
    let paths = paths.iter().filter(|path| within(&path.segments.join("::"), "std::env"));
    let mut found: Vec<(usize, String)> = paths.map(|path| (path.at, path.segments.join("::"))).collect();
    found.extend(source.variables().into_iter().map(|(at, name)| (at, format!("env = \"{name}\""))));
    found.retain(|_| !source.is_in(ENVIRONMENT_HOMES));
    for (at, word) in source.words() {
        let after = &source.code[at + word.len()..];
        let fixed = || source.literal_after(at).is_some_and(|literal| literal.text.starts_with("CARGO_PKG_"));
        let reads = match word {
            "env" => after.starts_with('!') && !fixed(),
            "option_env" => after.starts_with('!'),
            "from_env" | "try_from_env" | "from_default_env" | "try_from_default_env" => true,
            _ => false,
        };
        found.extend(reads.then(|| (at, word.to_owned())));
    }
    found.into_iter().map(|(at, what)| source.violation(Rule::Environment, at, what)).collect()
}

fn name(source: &Source) -> Vec<Violation> {
    let parts = source.path.split('/').map(|part| part.trim_end_matches(".rs"));
    let nameless = parts.filter(|part| NAMELESS.contains(part));
    nameless.map(|part| source.violation(Rule::Name, 0, format!("named {part}"))).collect()
}

fn size(source: &Source) -> Vec<Violation> {
    let lines = source.text.lines().count();
    let limits = [
        ("main", MAIN_LINES, source.path == "src/main.rs"),
        ("role", ROLE_LINES, source.path.starts_with("src/roles/")),
        ("file", FILE_LINES, true),
    ];
    let over = limits.iter().filter(|(_, limit, applies)| *applies && lines > *limit);
    over.map(|(kind, ..)| source.violation(Rule::Size, 0, format!("{kind} of {lines} lines"))).collect()
}

fn leftovers(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    for (at, word) in source.words() {
        let before = source.code[..at].trim_end();
        let is_left = match word {
            "todo" | "unimplemented" | "dbg" => source.code[at + word.len()..].starts_with('!'),
            "ignore" => before.ends_with("#[") || before.ends_with(',') && in_attribute(before),
            "unwrap" => source.path.starts_with("src/") && !source.is_test_at(at) && before.ends_with(['.', ':']),
            _ => false,
        };
        found.extend(is_left.then(|| source.violation(Rule::Leftover, at, word.to_owned())));
    }
    found
}

/// Whether code ends inside `#[…`, as in `#[cfg_attr(ci, ignore)]`.
fn in_attribute(code: &str) -> bool {
    code.rfind("#[").is_some_and(|at| !code[at..].contains(']'))
}

fn prints(source: &Source) -> Vec<Violation> {
    let words = source.words().into_iter();
    let prints = words
        .filter(|(at, word)| ["print", "println"].contains(word) && source.code[at + word.len()..].starts_with('!'));
    prints.map(|(at, word)| source.violation(Rule::Print, at, format!("{word}!"))).collect()
}

fn tls(lock: &str) -> Vec<Violation> {
    let source = Source { path: "Cargo.lock".into(), text: lock.into(), code: lock.into(), literals: Vec::new() };
    let package = |name: &str| lock.find(&format!("\nname = \"{name}\"\n")).map(|at| at + 1);
    let other = OTHER_TLS.iter().filter_map(|name| package(name).map(|at| (at, format!("package {name}"))));
    let none = package("ring").is_none().then(|| (0, "no package ring".to_owned()));
    other.chain(none).map(|(at, what)| source.violation(Rule::Tls, at, what)).collect()
}

fn undocumented(source: &Source, readme: &str) -> Vec<Violation> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut variables = source.variables();
    variables.retain(|(_, name)| !readme.split(|c| !is_word(c)).any(|word| word == *name));
    variables.into_iter().map(|(at, name)| source.violation(Rule::Documented, at, name.to_owned())).collect()
}

/// What is recorded under a name that the catalogue lacks, or has as another kind.
fn uncatalogued(source: &Source, catalogue: &[(Kind, &str, &str)]) -> Vec<Violation> {
    let mut found = Vec::new();
    for (at, word) in source.words() {
        let kind = match word {
            "counter" => Kind::Counter,
            "gauge" => Kind::Gauge,
            "histogram" => Kind::Histogram,
            _ => continue,
        };
        let after = &source.code[at + word.len()..];
        // A name in a variable is a literal elsewhere, which the list of those recorded nowhere finds.
        let Some(literal) = source.literal_after(at).filter(|_| after.starts_with("!(\"")) else { continue };
        if !catalogue.iter().any(|(known, name, _)| *known == kind && *name == literal.text) {
            found.push(source.violation(Rule::Metric, at, format!("{word} {}", literal.text)));
        }
    }
    found
}

// ---------------------------------------------------------------- violations

struct Violation {
    rule: Rule,
    file: String,
    line: usize,
    what: String,
    because: &'static str,
}

impl Violation {
    fn because(self, reason: Option<&'static str>) -> Self {
        Self { because: reason.unwrap_or(self.because), ..self }
    }

    fn is_excused_by(&self, exception: &Exception) -> bool {
        self.rule == exception.rule && self.file == exception.file && self.what.starts_with(exception.what)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.file, self.line, self.what, self.because)
    }
}

fn violations(rule: impl Fn(&Source) -> Vec<Violation>) -> Vec<Violation> {
    sources("src").iter().flat_map(rule).collect()
}

fn assert_none(mut found: Vec<Violation>) {
    found.retain(|violation| !EXCEPTIONS.iter().any(|exception| violation.is_excused_by(exception)));
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{} violation(s):\n{}\n", lines.len(), lines.join("\n"));
}

fn excerpt(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(60).collect()
}

// ---------------------------------------------------------------- reading the tree

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn sources(top: &str) -> Vec<Source> {
    let mut files = Vec::new();
    walk(top, &mut files);
    files.sort();
    assert!(files.len() > 1, "{top}/ was not found");
    files.into_iter().map(|file| Source::new(&file, &read(&file))).collect()
}

fn walk(folder: &str, files: &mut Vec<String>) {
    for entry in fs::read_dir(root().join(folder)).expect("a folder of the source tree") {
        let entry = entry.expect("an entry of the source tree");
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            walk(&path, files);
        } else if path.ends_with(".rs") {
            files.push(path);
        }
    }
}

/// One file, with what is code told apart from what is said in comments and strings.
struct Source {
    path: String,
    text: String,
    /// The text, with comments and what is inside quotes blanked: the same offsets.
    code: String,
    literals: Vec<Literal>,
}

/// A string literal, as written, and where its quote is.
struct Literal {
    at: usize,
    text: String,
}

/// A path: `a::b` in code, or each leaf of a `use`.
struct Mention<'a> {
    at: usize,
    segments: Vec<&'a str>,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let mut code = text.as_bytes().to_vec();
        let mut literals = Vec::new();
        let mut at = 0;
        while at < text.len() {
            let (inside, end, is_string) = opaque(text.as_bytes(), at);
            if is_string {
                literals.push(Literal { at, text: text[inside.clone()].to_owned() });
            }
            for byte in code[inside].iter_mut().filter(|byte| **byte != b'\n') {
                *byte = b' ';
            }
            at = end;
        }
        let code = String::from_utf8(code).expect("whole comments and strings were blanked");
        Self { path: path.into(), text: text.into(), code, literals }
    }

    fn violation(&self, rule: Rule, at: usize, what: String) -> Violation {
        let line = self.text[..at].matches('\n').count() + 1;
        Violation { rule, file: self.path.clone(), line, what, because: rule.says() }
    }

    fn is_in(&self, homes: &[&str]) -> bool {
        homes.iter().any(|home| self.path == *home || home.ends_with('/') && self.path.starts_with(home))
    }

    /// Identifiers and keywords of the code, with their offsets.
    fn words(&self) -> Vec<(usize, &str)> {
        let mut words = Vec::new();
        let mut rest = 0;
        while let Some(start) = self.code[rest..].find(is_word).map(|at| rest + at) {
            let end = self.code[start..].find(|c| !is_word(c)).map_or(self.code.len(), |at| start + at);
            words.push((start, &self.code[start..end]));
            rest = end;
        }
        words
    }

    /// Every path that the code mentions, with groups of `use` spread out.
    fn paths(&self) -> Vec<Mention<'_>> {
        let mut paths = Vec::new();
        let mut done = 0;
        for (at, word) in self.words() {
            let after = at + word.len();
            if at < done || is_continued(&self.code[..at]) {
                continue;
            }
            if word == "use" && !self.code[after..].starts_with('<') {
                done = self.code[after..].find(';').map_or(self.code.len(), |end| after + end);
                self.spread(after, done, &mut paths);
                continue;
            }
            let mut mention = Mention { at, segments: vec![word] };
            done = after;
            while let Some(rest) = self.code[done..].strip_prefix("::").filter(|rest| rest.starts_with(is_word)) {
                let next = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
                mention.segments.push(next);
                done += 2 + next.len();
            }
            paths.extend((mention.segments.len() > 1).then_some(mention));
        }
        paths
    }

    /// The leaves of one `use`, from behind the keyword to its semicolon.
    fn spread<'a>(&'a self, start: usize, end: usize, paths: &mut Vec<Mention<'a>>) {
        let mut path: Vec<&str> = Vec::new();
        let mut groups = vec![0];
        let (mut leaf, mut is_alias) = (None, false);
        let mut at = start;
        while at <= end {
            let word =
                self.code[at..end].find(|c| !is_word(c)).map_or(&self.code[at..end], |len| &self.code[at..at + len]);
            match self.code[at..].chars().next() {
                _ if word == "as" => is_alias = true,
                _ if is_alias && !word.is_empty() => is_alias = false,
                _ if !word.is_empty() => {
                    path.push(word);
                    leaf = Some(at);
                }
                Some('*') => {
                    path.push("*");
                    leaf = Some(at);
                }
                Some('{') => {
                    groups.push(path.len());
                    leaf = None;
                }
                Some(sign @ (',' | '}' | ';')) => {
                    if let Some(at) = leaf.take() {
                        let segments = path.strip_suffix(&["self"]).filter(|path| !path.is_empty()).unwrap_or(&path);
                        paths.push(Mention { at, segments: segments.to_vec() });
                    }
                    if sign == '}' {
                        groups.pop();
                    }
                    path.truncate(groups.last().copied().unwrap_or_default());
                }
                _ => {}
            }
            at += word.len().max(1);
        }
    }

    /// The variables that clap is told to read, with where their names stand.
    fn variables(&self) -> Vec<(usize, &str)> {
        let mut words = self.words();
        words.retain(|(at, word)| {
            *word == "env"
                && self.code[at + word.len()..].trim_start().starts_with("= \"")
                && self.code[..*at].trim_end().ends_with(['(', ','])
        });
        let names = words.into_iter().filter_map(|(at, _)| self.literal_after(at));
        names.map(|literal| (literal.at, literal.text.as_str())).collect()
    }

    fn literal_after(&self, at: usize) -> Option<&Literal> {
        self.literals.iter().find(|literal| literal.at > at)
    }

    /// The modules written out in this file: name, body, and whether only tests see it.
    fn modules(&self) -> Vec<(&str, Range<usize>, bool)> {
        let mut modules = Vec::new();
        let words = self.words();
        for pair in words.windows(2).filter(|pair| pair[0].1 == "mod") {
            let (at, (name_at, name)) = (pair[0].0, pair[1]);
            let open = name_at + name.len();
            if self.code[open..].trim_start().starts_with('{') {
                let attributes = self.code[..at].rfind([';', '}']).map_or(0, |end| end + 1);
                let is_test = self.code[attributes..at].contains("#[cfg(test)]");
                modules.push((name, open..closing(&self.code, open), is_test));
            }
        }
        modules
    }

    fn is_test_at(&self, at: usize) -> bool {
        self.modules().iter().any(|(_, body, is_test)| *is_test && body.contains(&at))
    }

    /// The module that a place in the file belongs to, from the crate's root.
    fn module_at(&self, at: usize) -> String {
        let path = self.path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        let mut module = path.replace('/', "::");
        for (name, ..) in self.modules().iter().filter(|(_, body, _)| body.contains(&at)) {
            module = format!("{module}::{name}");
        }
        module
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether the next word goes on with a path, names a field or a method, or says how visible something is.
fn is_continued(before: &str) -> bool {
    let goes_on = before.strip_suffix("::").is_some_and(|path| path.ends_with(|c| is_word(c) || c == '>'));
    goes_on || before.ends_with('.') && !before.ends_with("..") || before.ends_with("(in ")
}

/// Where the block that opens first after `from` closes.
fn closing(code: &str, from: usize) -> usize {
    let mut depth = 0;
    for (at, sign) in code[from..].match_indices(['{', '}']) {
        depth += if sign == "{" { 1 } else { -1 };
        if depth == 0 {
            return from + at;
        }
    }
    code.len()
}

/// What is no code at this place: the inside of a comment, string or character; where that ends; whether it is a string.
fn opaque(text: &[u8], at: usize) -> (Range<usize>, usize, bool) {
    let rest = &text[at..];
    let find = |from: usize, what: &[u8]| {
        text[from..].windows(what.len()).position(|window| window == what).map_or(text.len(), |found| from + found)
    };
    let hashes = rest.iter().skip(1).take_while(|byte| **byte == b'#').count();
    let is_prefix = |at: usize| matches!(text[at], b'b' | b'c') && (at == 0 || !is_word(text[at - 1].into()));
    let is_raw = rest[0] == b'r'
        && rest.get(1 + hashes) == Some(&b'"')
        && (at == 0 || !is_word(text[at - 1].into()) || is_prefix(at - 1));
    if rest.starts_with(b"//") {
        let end = find(at, b"\n");
        (at..end, end, false)
    } else if rest.starts_with(b"/*") {
        let end = end_of_comment(text, at);
        (at..end, end, false)
    } else if is_raw {
        let start = at + hashes + 2;
        let end = find(start, &[b"\"", &b"#".repeat(hashes)[..]].concat());
        (start.min(end)..end, (end + 1 + hashes).min(text.len()), true)
    } else if rest[0] == b'"' || rest[0] == b'\'' && is_character(rest) {
        let mut end = at + 1;
        while end < text.len() && text[end] != rest[0] {
            end += if text[end] == b'\\' { 2 } else { 1 };
        }
        (at + 1..end.min(text.len()), (end + 1).min(text.len()), rest[0] == b'"')
    } else {
        (at..at, at + 1, false)
    }
}

fn end_of_comment(text: &[u8], start: usize) -> usize {
    let (mut depth, mut at) = (0, start);
    while at < text.len() {
        match text[at..] {
            [b'/', b'*', ..] => depth += 1,
            [b'*', b'/', ..] => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            break;
        }
    }
    at
}

/// A character, not a lifetime: escaped, or closed after one character.
fn is_character(rest: &[u8]) -> bool {
    let next = rest.iter().skip(2).position(|byte| byte & 0xC0 != 0x80).map_or(rest.len(), |at| at + 2);
    rest.get(1) == Some(&b'\\') || rest.get(next) == Some(&b'\'') && rest.get(1) != Some(&b'\'')
}

// ---------------------------------------------------------------- what each rule must catch, and what it must not

mod catches {
    use super::*;

    type Check = fn(&Source) -> Vec<Violation>;

    fn assert_catches(check: Check, cases: &[(&str, &str)]) {
        for (path, text) in cases {
            assert!(!check(&Source::new(path, text)).is_empty(), "not caught in {path}: {text}");
        }
    }

    fn assert_lets_pass(check: Check, cases: &[(&str, &str)]) {
        for (path, text) in cases {
            let found = check(&Source::new(path, text));
            assert!(found.is_empty(), "{path}: {text}: {}", found[0]);
        }
    }

    #[test]
    fn wrong_arrows() {
        assert_catches(
            arrows,
            &[
                ("src/api/jobs.rs", "use crate::worker::Context;"),
                ("src/api/mod.rs", "use crate::{core::id::JobId, backend::{self, Compute as C}};"),
                ("src/api/jobs.rs", "use super::super::worker;"),
                ("src/api/jobs.rs", "fn f() { app::startup::start(); }"),
                ("src/api/jobs.rs", "use crate::*;"),
                ("src/worker/jobs/mod.rs", "use crate::api::ApiState;"),
                ("src/backend/docker/spec.rs", "fn f(p: &crate::core::instances::spec::Port) {}"),
                ("src/backend/mod.rs", "use crate::config::backend::BackendConfig;"),
                ("src/core/protocol/claim.rs", "use crate::backend::Guest;"),
                ("src/core/protocol/claim.rs", "macro_rules! m { () => { $crate::http::problem::new() } }"),
                ("src/http/query.rs", "use crate::core::{page::Page, jobs::state};"),
                ("src/http/body.rs", "mod tests { use super::*; use super::super::super::api; }"),
                ("src/config/redis.rs", "use crate::core::redis;"),
                ("src/shutdown.rs", "use crate::worker::Context;"),
                ("src/telemetry/mod.rs", "use crate::core::id::JobId;"),
                ("src/newcomer.rs", "use crate::core::id::JobId;"),
            ],
        );
        assert_lets_pass(
            arrows,
            &[
                ("src/main.rs", "use app::{cli::Cli, roles};"),
                ("src/roles/serve.rs", "use crate::{api, worker, backend::docker};"),
                (
                    "src/backend/docker/spec.rs",
                    "use super::{super::Guest, labels}; use crate::{backend::Plan, core::id::JobId};",
                ),
                ("src/http/query.rs", "//! [`crate::worker`]\nlet text = \"use crate::worker;\"; /* crate::api::x */"),
                (
                    "src/http/query.rs",
                    "use std::fmt; use core::fmt::Debug; fn f() { let c = '\"'; } use crate::core::page::Page;",
                ),
                (
                    "src/core/jobs/mod.rs",
                    "pub(in crate::core::networks) fn f() -> impl Sized + use<> {} use self::state::JobStatus;",
                ),
            ],
        );
    }

    #[test]
    fn nouns_that_meet() {
        assert_catches(
            arrows,
            &[
                ("src/core/jobs/store.rs", "use crate::core::instances::InstanceSpec;"),
                ("src/core/jobs/store.rs", "use super::super::networks::store;"),
                ("src/core/jobs/mod.rs", "use super::tenants;"),
                ("src/core/hosts/store.rs", "use crate::core::{db::DualDb, protocol::claim};"),
                ("src/core/jobs/store.rs", "use crate::core;"),
                ("src/core/id.rs", "use crate::core::db::DualDb;"),
                ("src/core/db/mod.rs", "use app::core::queue::job::JobStatus;"),
                ("src/core/newcomer.rs", "use app::core::queue::job::JobStatus;"),
            ],
        );
        assert_lets_pass(
            arrows,
            &[
                (
                    "src/core/jobs/store.rs",
                    "use super::state; use crate::core::{db::DbError, id::{JobId, TenantId}, page::*};",
                ),
                ("src/core/protocol/claim.rs", "use crate::core::{instances::Transition, jobs::JobStatus};"),
                ("src/core/keeper.rs", "use app::core::queue::rescue;"),
            ],
        );
    }

    #[test]
    fn a_violation_says_where_what_and_which_rule() {
        let found =
            arrows(&Source::new("src/api/jobs.rs", "//! é\n\nuse crate::{\n    core::id,\n    worker::Context,\n};\n"));
        let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        let rule = "api sees core, http and config; never worker, backend or roles";
        assert_eq!(lines, [format!("src/api/jobs.rs:5: api::jobs → worker::Context: {rule}")]);
    }

    #[test]
    fn stray_sql() {
        let file = "src/worker/sweep.rs";
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
                (file, "batch(\"begin\")"),
                (file, "#[cfg(test)]\nmod tests { fn f() { q(\"delete from jobs\") } }"),
                ("src/api/store.rs", "q(\"select id from jobs\")"),
                ("src/core/keeper.rs", "q(\"select id from jobs\")"),
            ],
        );
        assert_lets_pass(
            sql,
            &[
                ("src/core/jobs/store.rs", "q(\"select id from jobs\")"),
                ("src/core/protocol/claim.rs", "q(\"update jobs set status = 'x'\")"),
                (file, "/// select id from jobs\n// \"insert into events\"\nfn f() {} /* delete from jobs */"),
                (
                    file,
                    "#[error(\"network could not be set up: {0}\")] struct E; f(\"select a backend\", '\"', \"$PATH\");",
                ),
                (file, "f(\"update the file, then start again\"); f(\"with three workers\"); steps.begin(\"undo\");"),
            ],
        );
    }

    #[test]
    fn results_without_names() {
        let file = "src/core/jobs/store.rs";
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
                ("src/core/protocol/claim.rs", "q(r#\"select row_to_json(j.*) from jobs j\"#)"),
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

    #[test]
    fn missing_headers() {
        assert_catches(
            header,
            &[("src/a.rs", "use std::fmt;\n//! Late.\n"), ("src/a.rs", "// Quiet.\n"), ("src/a.rs", "")],
        );
        assert_lets_pass(header, &[("src/a.rs", "//! What it is.\n")]);
    }

    #[test]
    fn crates_away_from_home() {
        assert_catches(
            addresses,
            &[
                ("src/core/jobs/store.rs", "use actix_web::web;"),
                ("src/worker/mod.rs", "#[actix_web::main]\nasync fn f() {}"),
                ("src/core/jobs/store.rs", "fn f(row: &tokio_postgres::Row) {}"),
                ("src/core/jobs/store.rs", "use ::deadpool_postgres;"),
                ("src/core/db/pool.rs", "use refinery as r;"),
                ("src/worker/mod.rs", "use {std::fmt, fred::{clients::Client}};"),
                ("src/backend/simulated/mod.rs", "use bollard::Docker;"),
                ("src/api/mod.rs", "use clap::Parser;"),
                ("src/roles/dev.rs", "use std::{process::{Command, ExitCode}};"),
                ("src/roles/dev.rs", "fn f() { process::Command::new(\"ip\"); }"),
                ("src/backend/docker/mod.rs", "use tokio::{fs, process};"),
            ],
        );
        assert_lets_pass(
            addresses,
            &[
                ("src/api/jobs.rs", "use actix_web::web;"),
                ("src/core/queue/bell.rs", "use fred::clients::Client;"),
                ("src/core/keeper.rs", "fn f(c: &RedisConfig) { c.fred(); }"),
                (
                    "src/roles/dev.rs",
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
                ("src/config/mod.rs", "const C: Option<&str> = option_env!(\"HOME\");"),
                ("src/roles/dev.rs", "#[arg(long, env = \"APP_X\")] x: String,"),
                ("src/roles/dev.rs", "fn f() { EnvFilter::from_default_env(); }"),
            ],
        );
        assert_lets_pass(
            environment,
            &[
                ("src/cli.rs", "#[arg(long, env = \"APP_X\")] x: String,"),
                ("src/config/mod.rs", "use std::env;"),
                ("src/worker/mod.rs", "const V: &str = env!(\"CARGO_PKG_VERSION\"); let env = \"text\";"),
            ],
        );
    }

    #[test]
    fn nameless_files() {
        assert_catches(name, &[("src/utils.rs", ""), ("src/core/helpers/mod.rs", ""), ("src/api/common.rs", "")]);
        assert_lets_pass(name, &[("src/core/communion.rs", "")]);
    }

    #[test]
    fn large_files() {
        let lines = |count: usize| "x\n".repeat(count);
        assert_catches(
            size,
            &[("src/main.rs", &lines(41)), ("src/roles/dev.rs", &lines(101)), ("src/api/jobs.rs", &lines(401))],
        );
        assert_lets_pass(
            size,
            &[("src/main.rs", &lines(40)), ("src/roles/dev.rs", &lines(100)), ("src/api/jobs.rs", &lines(400))],
        );
    }

    #[test]
    fn things_left_over() {
        assert_catches(
            leftovers,
            &[
                ("src/a.rs", "fn f() { g().unwrap(); }"),
                ("src/a.rs", "fn f() { x\n    .map(Option::unwrap); }"),
                ("src/a.rs", "#[cfg(test)]\nmod tests {}\nfn f() { g().unwrap(); }"),
                ("src/a.rs", "mod inner { fn f() { g().unwrap(); } }"),
                ("src/a.rs", "#[cfg(test)]\nmod tests { fn f() { todo!() } }"),
                ("src/a.rs", "fn f() { unimplemented!(\"later\") }"),
                ("tests/it/main.rs", "fn f() { dbg!(1); }"),
                ("tests/it/main.rs", "#[test]\n#[ignore]\nfn f() {}"),
                ("tests/it/main.rs", "#[ignore = \"slow\"]\nfn f() {}"),
                ("tests/it/main.rs", "#[cfg_attr(ci, ignore)]\nfn f() {}"),
            ],
        );
        assert_lets_pass(
            leftovers,
            &[
                ("src/a.rs", "// todo!() and .unwrap()\nfn f() { g(\"dbg!\").unwrap_or(1); }"),
                ("src/a.rs", "#[cfg(test)]\n#[allow(x)]\nmod tests { fn f() { if a { b } g().unwrap(); } }"),
                ("tests/it/main.rs", "fn f() { g().unwrap(); h(a, ignore); }"),
            ],
        );
    }

    #[test]
    fn printing() {
        assert_catches(prints, &[("src/api/jobs.rs", "println!(\"x\")"), ("src/roles/dev.rs", "std::print!(\"x\")")]);
        assert_lets_pass(prints, &[("src/main.rs", "eprintln!(\"println!\") // print!")]);
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
        let source =
            Source::new("src/config/http.rs", "struct A {\n    #[arg(long, env = \"APP_LISTEN\")]\n    a: String,\n}");
        assert_eq!(
            undocumented(&source, "`APP_LISTEN_X`, MY_APP_LISTEN")[0].to_string().find(":2: APP_LISTEN:"),
            Some(18)
        );
        assert!(undocumented(&source, "| `APP_LISTEN` | where |").is_empty());
    }

    #[test]
    fn uncatalogued_metrics() {
        let catalogue = [(Kind::Counter, "a_total", "A.")];
        let check = |text| uncatalogued(&Source::new("src/worker/mod.rs", text), &catalogue).len();
        assert_eq!(check("metrics::counter!(\"b_total\").increment(1);"), 1, "not there");
        assert_eq!(check("metrics::gauge!(\"a_total\").set(1.0);"), 1, "there, as another kind");
        assert_eq!(check("::metrics::counter!(\"a_total\", &labels).increment(1); gauge!(name, \"x\" => y)"), 0);
    }

    #[test]
    fn an_exception_excuses_its_own_file_only() {
        let stray = |path| addresses(&Source::new(path, "use actix_web::dev::ServerHandle;")).remove(0);
        let excused = |path| EXCEPTIONS.iter().any(|exception| stray(path).is_excused_by(exception));
        assert!(excused("src/roles/parts.rs"));
        assert!(!excused("src/roles/serve.rs"));
    }
}
