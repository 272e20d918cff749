//! The house rules of `docs/architecture.md`, read off the source: arrows, addresses, SQL, headers, sizes, leftovers.
//!
//! Promises: every violation is reported at once, as `file:line: what: rule`; every exception is a row of `EXCEPTIONS`
//! with its reason, and one that excuses nothing any more fails too. Each rule is a function of one `Source`, so that
//! `mod catches` can show it what it must catch. Refuses: being a compiler. It reads words, paths and string literals;
//! it does not follow aliases.

use std::{fmt, fs, path::Path};

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
    excuse(Rule::Environment, "src/telemetry.rs", "try_from_default_env", "RUST_LOG is tracing's own convention"),
    excuse(Rule::Size, "src/roles/parts.rs", "role of", "everything the roles share is put together here"),
    excuse(Rule::Print, "src/roles/keys.rs", "println!", "the key is the command's output"),
    excuse(Rule::Print, "src/roles/migrate.rs", "println!", "the report is the command's output"),
    excuse(Rule::Print, "src/roles/purge.rs", "println!", "the report is the command's output"),
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
        &["core", "http", "backend", "config", "shutdown"],
        "worker sees core, http, backend, config and shutdown; never api or roles",
    ),
    arrow(&["backend"], &["core::id"], "backend knows only ids and its own specs"),
    arrow(&["http"], &["core::invalid", "core::page"], "http knows only core::invalid and core::page"),
    arrow(&["telemetry"], &["config::environment"], "telemetry knows only the format of its logs"),
    arrow(&["lib", "config", "shutdown"], &[], "a leaf imports nothing of ours"),
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
        &["core::db", "core::id", "core::kind", "core::page", "core::invalid", "core::redis", "config"],
        "nouns do not import each other: they meet in core::protocol and core::keeper",
    ),
    arrow(&["core::db", "core::redis"], &["config"], "a connection knows its settings and no noun"),
    arrow(&["core::watch"], &["core::db"], "the watch knows how to ask, and no noun"),
    arrow(&["core::id", "core::invalid", "core::kind", "core::page"], &[], "plain values import nothing of ours"),
];

/// Third-party crates (and doors to the machine) and the one address of each. No home: nowhere.
const ADDRESSES: &[(&[&str], &[&str])] = &[
    (&["actix", "actix_web", "actix_http", "actix_rt", "actix_service"], &["src/api/", "src/http/"]),
    (&["tokio_postgres", "deadpool_postgres", "tokio_postgres_rustls", "postgres_types"], &["src/core/db/"]),
    (&["refinery"], &["src/core/db/migrate.rs"]),
    (&["fred"], &["src/core/redis.rs", "src/core/queue/", "src/core/identity/"]),
    (&["bollard"], &["src/backend/docker/"]),
    (&["clap"], &["src/config/", "src/cli.rs", "src/main.rs"]),
    (&["tracing_subscriber"], &["src/telemetry.rs"]),
    (&["std::process::Command", "std::process::*", "process::Command", "tokio::process", "nix::unistd::fork"], &[]),
];

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
    Header,
    Address,
    Environment,
    Name,
    Size,
    Leftover,
    Print,
    Tls,
    Documented,
}

impl Rule {
    fn says(self) -> &'static str {
        match self {
            Self::Arrow => "this module has no row in ARROWS, so it may import nothing of ours: give it one",
            Self::Sql => "SQL lives in core's store.rs files and in core/protocol/ (if this is prose, reword it)",
            Self::Header => "a file opens with `//!`: what it is, what it promises, what it refuses",
            Self::Address => "a third-party crate has one address (ADDRESSES); processes are started nowhere",
            Self::Environment => "the environment is read in config/ and cli.rs, by clap",
            Self::Name => "no utils, helpers, common, misc: find the missing noun",
            Self::Size => "main ≤ 40 lines, a role ≤ 100, any file ≤ 400: split it",
            Self::Leftover => "no unwrap outside test modules; no todo!, unimplemented!, dbg! or #[ignore] anywhere",
            Self::Print => "standard output belongs to the commands whose answer it is",
            Self::Tls => "one TLS provider, ring: look for the feature that pulled in another",
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
fn every_exception_is_still_needed() {
    let rules = [arrows, sql, header, addresses, environment, name, size, leftovers, prints];
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
        let reach = |arrow: &&Arrow| arrow.from.iter().filter(|from| within(&module, from)).map(|from| from.len()).max();
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
    let pair = |first, second| words.windows(2).any(|pair| pair == [first, second]);
    let after = |word: &'static str| (0..words.len()).filter(move |&at| words[at] == word).map(|at| at + 1);
    let verbs = [("insert", "into"), ("delete", "from"), ("for", "update"), ("lock", "table"), ("truncate", "table")];
    let ddl = ["table", "index", "type", "view", "schema"];
    let placeholder = || text.match_indices('$').any(|(at, _)| text[at + 1..].starts_with(|c: char| c.is_ascii_digit()));
    verbs.iter().any(|(first, second)| pair(first, second))
        || ["create", "alter", "drop"].iter().any(|verb| ddl.iter().any(|noun| pair(verb, noun)))
        || after("select").any(|from| words[from..].contains(&"from"))
        || after("update").any(|from| words[from..].iter().take(4).any(|word| *word == "set"))
        || text.starts_with("select ") && text.contains(['(', '*', '$'])
        || text.starts_with("with ") && (text.contains(" as (") || text.contains(" as materialized ("))
        || ["begin", "commit", "rollback"].contains(&text.trim_end_matches(';'))
        || text.starts_with("set ") && text.contains(['=', '\''])
        || placeholder()
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
    let prints = words.filter(|(at, word)| {
        ["print", "println"].contains(word) && source.code[at + word.len()..].starts_with('!')
    });
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
            let (inside, end) = opaque(text.as_bytes(), at);
            if text.as_bytes()[end - 1] == b'"' {
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

    fn paths(&self) -> Vec<Mention<'_>> {
        let mut paths = Vec::new();
        let mut done = 0;
        for (at, word) in self.words() {
            let (before, after) = (&self.code[..at], &self.code[at + word.len()..]);
            let starts = !before.ends_with("(in ") && !before.ends_with(['.', ':']) || before.trim_end().len() < at && before.trim_end().ends_with(':')
                || before.ends_with("::") && !before[..at - 2].ends_with(|c: char| is_word(c) || c == '>');
            if at < done || !starts {
            } else if word == "use" && !after.starts_with('<') {
                done = at + self.code[at..].find(';').unwrap_or(word.len());
                self.leaves(at + word.len()..done, &mut paths);
            } else {
                let end = self.code[at..].find(|c: char| !is_word(c) && c != ':').map_or(self.code.len(), |end| at + end);
                let segments: Vec<&str> = self.code[at..end].split("::").filter(|segment| !segment.is_empty()).collect();
                if segments.len() > 1 {
                    paths.push(Mention { at, segments });
                }
            }
        }
        paths
    }
}
