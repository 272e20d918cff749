//! What the rules report, and the exceptions from them.
//!
//! Each rule returns all of its violations, exceptions included. `assert_none` removes those that a row of `EXCEPTIONS`
//! allows and prints the others as `file:line: what: rule`. A row that allows nothing any more fails a test of its own.

use std::fmt;

use crate::{
    source::{Found, Source, sources},
    words::RENAMED,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Arrow,
    Circle,
    Home,
    Tls,
    Environment,
    Sql,
    SqlFile,
    Columns,
    Header,
    Name,
    Size,
    Leftover,
    Print,
    Documented,
    Metric,
    Word,
}

impl Rule {
    fn message(self) -> &'static str {
        match self {
            Self::Arrow => "this module has no row in ARROWS, so it may import nothing of ours: add one",
            Self::Circle => "files must not import each other in a circle: move what they share into a file of its own",
            Self::Home => "each third-party crate has one home (HOMES), and processes are started nowhere",
            Self::Tls => "one TLS provider, ring: find the feature that enabled another",
            Self::Environment => "the environment is read in config/ and cli.rs, by clap",
            Self::Sql => "SQL is in store.rs and in the statement files (SQL_HOMES); if this is prose, reword it",
            Self::SqlFile => {
                "SQL is one literal, or above 15 lines one .sql file with a comment header beside its Rust file"
            }
            Self::Columns => {
                "a result names its columns: with `*`, a column added by the next release breaks prepared statements"
            }
            Self::Header => "a file begins with `//!`: what it does, how it works, what it guarantees under failure",
            Self::Name => "no utils, helpers, common, misc: name the file after what is in it",
            Self::Size => "main has at most 40 lines, a command 100, any file 400: split it",
            Self::Leftover => "no unwrap outside test modules; no todo!, unimplemented!, dbg! or #[ignore] anywhere",
            Self::Print => "only commands whose answer it is print to standard output",
            Self::Documented => "every environment variable is in docs/configuration.md or README.md",
            Self::Metric => {
                "every metric is in METRICS, with its kind, and in docs/operations.md, and is recorded somewhere"
            }
            Self::Word => "this word is not used in this project",
        }
    }
}

/// A violation that is allowed. `file` may be a folder; `what` is how the violation's text begins.
pub struct Exception {
    rule: Rule,
    file: &'static str,
    what: &'static str,
    reason: &'static str,
}

const fn allow(rule: Rule, file: &'static str, what: &'static str, reason: &'static str) -> Exception {
    Exception { rule, file, what, reason }
}

pub const EXCEPTIONS: &[Exception] = &[
    allow(Rule::Arrow, "src/http/body.rs", "http::body::tests → core::instances", "its tests read a real body"),
    allow(Rule::Sql, "src/core/db/migrate.rs", "", "the migrations' lock and their table"),
    allow(Rule::Sql, "src/core/db/conn.rs", "", "begin and commit"),
    allow(Rule::Home, "src/worker/health.rs", "actix_web", "the worker's own small listener"),
    allow(Rule::Home, "src/startup/", "actix_web", "startup stops the servers that it starts"),
    allow(Rule::Home, "src/config/database.rs", "tokio_postgres", "a URL is parsed where it enters"),
    allow(Rule::Home, "src/config/redis.rs", "fred", "a URL is parsed where it enters"),
    allow(Rule::Print, "src/commands/config.rs", "print!", "the page is the command's output"),
    allow(Rule::Print, "src/commands/keys.rs", "println!", "the key is the command's output"),
    allow(Rule::Print, "src/commands/migrate.rs", "println!", "the report is the command's output"),
    allow(Rule::Print, "src/commands/purge.rs", "println!", "the report is the command's output"),
    allow(Rule::Print, "src/commands/secrets.rs", "println!", "the report is the command's output"),
    allow(Rule::Print, "src/commands/tenants.rs", "println!", "the report is the command's output"),
    allow(Rule::Word, "CHANGELOG.md", RENAMED[0], "the old name of a metric that users have in their rules"),
    allow(Rule::Word, "CHANGELOG.md", RENAMED[1], "the old name of a metric that users have in their rules"),
    allow(Rule::Word, "CHANGELOG.md", RENAMED[2], "the old value of a label that users have in their rules"),
];

pub struct Violation {
    rule: Rule,
    file: String,
    line: usize,
    what: String,
    message: String,
}

impl Violation {
    pub fn new(rule: Rule, file: &str, line: usize, what: impl Into<String>) -> Self {
        Self { rule, file: file.to_owned(), line, what: what.into(), message: rule.message().to_owned() }
    }

    pub fn at<T>(source: &Source, rule: Rule, found: &Found<T>, what: impl Into<String>) -> Self {
        Self::new(rule, &source.path, found.line, what)
    }

    /// Replaces the rule's general message.
    pub fn because(self, message: impl Into<String>) -> Self {
        Self { message: message.into(), ..self }
    }

    pub fn is_allowed_by(&self, exception: &Exception) -> bool {
        let is_there =
            self.file == exception.file || exception.file.ends_with('/') && self.file.starts_with(exception.file);
        self.rule == exception.rule && is_there && self.what.starts_with(exception.what)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.file, self.line, self.what, self.message)
    }
}

pub fn violations(rule: impl Fn(&Source) -> Vec<Violation>) -> Vec<Violation> {
    sources().iter().flat_map(rule).collect()
}

pub fn assert_none(mut found: Vec<Violation>) {
    found.retain(|violation| !EXCEPTIONS.iter().any(|exception| violation.is_allowed_by(exception)));
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{} violation(s):\n{}\n", lines.len(), lines.join("\n"));
}

/// The rows of `EXCEPTIONS` for which no violation was found.
pub fn unneeded(found: &[Violation]) -> Vec<String> {
    let unneeded =
        EXCEPTIONS.iter().filter(|exception| !found.iter().any(|violation| violation.is_allowed_by(exception)));
    unneeded.map(|e| format!("{:?} {} {:?} ({})", e.rule, e.file, e.what, e.reason)).collect()
}

/// For the tests of the rules: what each must catch, and what it must let pass.
pub mod cases {
    use super::{Source, Violation};

    type Check = fn(&Source) -> Vec<Violation>;

    /// Rust of a file, or statements of a function.
    fn source(path: &str, text: &str) -> Source {
        let is_file = syn::parse_file(text).is_ok();
        Source::new(path, &if is_file { text.to_owned() } else { format!("fn case() {{ {text} }}") })
    }

    pub fn assert_catches(check: Check, cases: &[(&str, &str)]) {
        for (path, text) in cases {
            assert!(!check(&source(path, text)).is_empty(), "not caught in {path}: {text}");
        }
    }

    pub fn assert_lets_pass(check: Check, cases: &[(&str, &str)]) {
        for (path, text) in cases {
            let found = check(&source(path, text));
            assert!(found.is_empty(), "{path}: {text}: {}", found[0]);
        }
    }
}
