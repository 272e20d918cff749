//! Words that may not come back, each with the one to use, in every text of the project: metaphors, and names that the
//! project had before it used those of its field.
//!
//! `WORDS` are prose. They are found in any case and as parts of names, so that `bell` is found in `queue_bell_total`
//! and `DoorBell`. `NAMES` are identifiers that are English words too: they are found where code is, which is Rust
//! outside of comments and what stands between backticks. `PIECES` are found as they are written.

use std::{fs, iter, process::Command};

use crate::{
    source::{Source, root, sources, tests},
    violation::{Rule, Violation, assert_none},
};

/// Words and phrases of two. `*` stands for any ending.
const WORDS: &[(&str, &str)] = &[
    ("bell", "Notifier, notification or wake-up"),
    ("bells", "notifications or wake-ups"),
    ("census", "queue statistics (queue_stats)"),
    ("catalogue*", "list of metrics (telemetry::metrics)"),
    ("claimant*", "WorkerIdentity"),
    ("deaf", "disconnected"),
    ("doorbell*", "wake-up"),
    ("everybody", "who exactly: every caller, all workers"),
    ("fabric*", "Network, or network backend"),
    ("for ever", "the actual duration, or: without a limit, never expires"),
    ("guest*", "ContainerSpec, or container"),
    ("heard", "received, or read"),
    ("judge*", "authorize, check or decide (KeyChangeRequest, check_grants)"),
    ("keeper*", "maintenance"),
    ("misfit*", "unschedulable jobs (fail_unschedulable_jobs)"),
    ("news", "InvalidationBatch, invalidations, or the messages"),
    ("nobody", "the subject that does not: no client, no worker"),
    ("passenger*", "follower"),
    ("pilot*", "leader"),
    ("reap*", "rescue (rescue_expired_leases)"),
    ("sweep*", "collect (collect_orphans), or scan"),
    ("take off", "seal"),
    ("told", "sent, notified or configured"),
    ("verdict*", "RestartDecision, decision or result"),
    ("whom", "a clause with a noun: the client that …"),
];

/// Where a name is not to be used (everywhere: ""), the name, case-sensitive and whole, and the one to use.
const NAMES: &[(&str, &str, &str)] = &[
    ("", "ASK", "ReadYourWrites::consistency_for's script"),
    ("src/", "Again", "Retry { uses_attempt }"),
    ("tests/", "Arena", "RevocationRace"),
    ("", "Asked", "KeyChangeRequest"),
    ("", "Attachment", "NetworkAttachment"),
    ("", "ComputeBackend", "AnyCompute"),
    ("tests/", "Contender", "Reader or Revoker"),
    ("", "Deaf", "Wakeup::Disconnected"),
    ("", "Door", "Channel"),
    ("", "Ear", "Subscriber"),
    ("", "FabricBackend", "AnyNetwork"),
    ("", "Fact", "KeyLookup"),
    ("", "Flights", "SingleFlight"),
    ("", "Freshness", "ReadYourWrites"),
    ("", "Halt", "StopReason"),
    ("", "Halted", "Stopped"),
    ("", "Held", "ActiveJob"),
    ("tests/", "Lab", "QueueFixture"),
    ("tests/", "Line", "Reader"),
    ("tests/", "Mint", "KeyFactory"),
    ("src/", "Prefix", "CasToken"),
    ("", "Rung", "the name of what was sent"),
    ("src/", "SEEN", "ACKED"),
    ("src/", "Seat", "Leader or Follower"),
    ("src/", "Seen", "Observation"),
    ("tests/", "Stage", "TwoReplicas"),
    ("", "TELL", "ReadYourWrites::record_write's script"),
    ("src/", "Tier", "RedisTier"),
    ("tests/", "Wire", "RawClient or FaultProxy"),
    ("", "accept_create", "instances::create"),
    ("", "accept_delete", "instances::delete"),
    ("", "accept_key", "identity::create"),
    ("", "forget_old", "delete_finished_jobs, or delete_old_…"),
    ("", "landed", "completed"),
    ("", "may_ask", "check_grants"),
    ("", "may_grant", "check_grants"),
    ("", "may_have", "check_grants"),
    ("", "may_last", "check_grants"),
    ("src/", "unwanted", "deletion_requested"),
];

const SENTENCES: &str = "whole sentences: what the module does, how it works, what it guarantees under failure";

/// Case-sensitive, anywhere.
const PIECES: &[(&str, &str)] = &[
    ("Promises:", SENTENCES),
    ("Refuses:", SENTENCES),
    ("what it promises", SENTENCES),
    ("what it refuses", SENTENCES),
    ("api/accepted", "api/instances"),
    ("api/grant.", "api/grants."),
    ("backend/choice", "backend/any"),
    ("cache/flight", "cache/single_flight"),
    ("cache/tier", "cache/redis_tier"),
    ("cache::flight", "cache::single_flight"),
    ("cache::tier", "cache::redis_tier"),
    ("const AGAIN: Duration", "a name by <WHAT>_<TIMEOUT|INTERVAL|TTL>"),
    ("const OLD: Duration", "a name by <WHAT>_<TTL|MAX_AGE>"),
    ("const WAIT: Duration", "a name by <WHAT>_TIMEOUT"),
    ("core/freshness", "core/read_your_writes"),
    ("core/jobs", "core/queue"),
    ("core/kind", "core/queue/job"),
    ("core/protocol", "core/queue, core/instances or core/identity"),
    ("core/watch", "api/wait"),
    ("core::freshness", "core::read_your_writes"),
    ("core::jobs", "core::queue"),
    ("core::kind", "core::queue::job"),
    ("core::protocol", "core::queue, core::instances or core::identity"),
    ("core::watch", "api::wait"),
    ("Seal::new", "EntrySigner::new"),
    ("entry::Seal", "entry::EntrySigner"),
    ("identity/line", "the file named after its type"),
    ("identity/minted", "the file named after KeyFactory"),
    ("identity/stage", "the file named after TwoReplicas"),
    ("identity/wire", "the file named after its type"),
    ("queue/boot", "queue/workers"),
    ("queue/ear", "queue/notify/subscriber"),
    ("queue/lab", "queue/fixture"),
    ("roles/", "commands/ or startup/"),
    ("roles::", "commands:: or startup::"),
    ("worker/chance", "worker/random"),
    ("worker/observer", "worker/reconcile"),
    ("worker/wakeups", "worker/timers"),
    ("worker::chance", "worker::random"),
    ("worker::observer", "worker::reconcile"),
    ("worker::wakeups", "worker::timers"),
];

/// How violations begin that CHANGELOG.md needs: it names the metrics and the label value that were renamed.
pub const RENAMED: [&str; 3] = ["\"bell\"", "\"reap*\"", "\"misfit*\""];

/// Not ours to word, and this file.
const EXCLUDED: &[&str] =
    &["Cargo.lock", "LICENSE-", "tests/architecture/words.rs", "tests/load/Cargo.lock", "tests/openapi/schema-"];

fn words(path: &str, text: &str, rust: Option<&Source>) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut report = |line: usize, what: &str, instead: &str| {
        found.push(Violation::new(Rule::Word, path, line, format!("{what:?}")).because(format!("say {instead}")));
    };

    // The path itself counts as a line before the first.
    let named = iter::once((0, path)).chain((1..).zip(text.lines()));
    let spoken: Vec<(usize, String)> =
        named.clone().flat_map(|(line, text)| parts(text).into_iter().map(move |part| (line, part))).collect();
    for (at, (line, word)) in spoken.iter().enumerate() {
        for (forbidden, instead) in WORDS {
            let is_there = match (forbidden.split_once(' '), forbidden.strip_suffix('*')) {
                (Some((first, second)), _) => {
                    word == first && spoken.get(at + 1).is_some_and(|(_, next)| next == second)
                }
                (None, Some(stem)) => word.starts_with(stem),
                (None, None) => word == forbidden,
            };
            if is_there {
                report(*line, forbidden, instead);
            }
        }
    }
    for (line, text) in named {
        for (_, instead) in PIECES.iter().filter(|(piece, _)| text.contains(piece)) {
            report(line, text.trim(), instead);
        }
    }
    let code = rust.into_iter().flat_map(|rust| &rust.words).map(|word| (word.line, word.is.0.as_str()));
    for (line, name) in code.chain(quoted(text)) {
        let rows = NAMES.iter().filter(|(folder, forbidden, _)| *forbidden == name && path.starts_with(folder));
        rows.for_each(|(.., instead)| report(line, name, instead));
    }
    found
}

/// The words of a line in small letters, names taken apart: `queue_bell` and `QueueBell` are `queue` and `bell`.
fn parts(line: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut before = ' ';
    for c in line.chars() {
        let begins = !before.is_alphabetic() || before.is_lowercase() && c.is_uppercase();
        match parts.last_mut().filter(|_| !begins) {
            Some(part) if c.is_alphabetic() => part.extend(c.to_lowercase()),
            _ if c.is_alphabetic() => parts.push(c.to_lowercase().collect()),
            _ => {}
        }
        before = c;
    }
    parts
}

/// The identifiers of code between backticks, with their lines.
fn quoted(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines()).flat_map(|(line, text)| {
        let code = text.split('`').skip(1).step_by(2);
        let names = code.flat_map(|code| code.split(|c: char| !c.is_alphanumeric() && c != '_'));
        names.map(move |name| (line, name))
    })
}

/// Every text of the project: what git tracks, and what it does not ignore.
fn texts() -> Vec<(String, String)> {
    let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let git = Command::new("git").args(list).current_dir(root()).output().expect("git lists the project's files");
    assert!(git.status.success(), "{}", String::from_utf8_lossy(&git.stderr));
    let paths = String::from_utf8_lossy(&git.stdout).into_owned();
    let ours = paths.split('\0').filter(|path| !EXCLUDED.iter().any(|other| path.starts_with(other)));
    // One that is deleted, or no text, has no words.
    ours.filter_map(|path| Some((path.to_owned(), fs::read_to_string(root().join(path)).ok()?))).collect()
}

pub fn everywhere() -> Vec<Violation> {
    let texts = texts();
    assert!(texts.len() > 100, "only {} files", texts.len());
    let rust = |path: &str| sources().iter().chain(tests()).find(|source| source.path == path);
    texts.iter().flat_map(|(path, text)| words(path, text, rust(path))).collect()
}

#[test]
fn forbidden_words_do_not_come_back() {
    assert_none(everywhere());
}

mod catches {
    use super::*;

    fn check(path: &str, text: &str) -> Vec<Violation> {
        let rust = path.ends_with(".rs").then(|| Source::new(path, text));
        words(path, text, rust.as_ref())
    }

    #[test]
    fn words_that_came_back() {
        for (path, text) in [
            ("docs/a.md", "Redis only rings a bell."),
            ("docs/a.md", "NOBODY waits"),
            ("docs/a.md", "kept for\never"),
            ("src/a.rs", "//! kept for\n//! ever"),
            ("src/a.rs", "// the reaper"),
            ("src/a.rs", "const A: &str = \"queue_bell_total\";"),
            ("src/a.rs", "struct DoorBell;"),
            ("src/a.rs", "fn take_off() {}"),
            ("src/a.rs", "fn f(held: &Held) {}"),
            ("tests/it/a.rs", "use super::stage::Stage;"),
            ("src/a.rs", "fn f() { info!(a = Halt::Lost) }"),
            ("src/a.rs", "//! [`Held`] is active."),
            ("src/a.rs", "//! Reads. Refuses: to write."),
            ("docs/a.md", "see `leases::Held`"),
            ("src/core/keeper.rs", ""),
            ("scripts/a", "# roles/work.rs"),
        ] {
            assert!(!check(path, text).is_empty(), "not caught in {path}: {text}");
        }
    }

    #[test]
    fn words_in_another_sense() {
        for (path, text) in [
            ("docs/a.md", "Held while a row is locked: seal, prefix, cached, process, newspaper, bellow."),
            ("src/a.rs", "enum Stage {}"),
            ("src/a.rs", "// Held by one task. Cached answers are signed.\nfn f(held: bool) { flight.seal(prefix) }"),
            ("src/a.rs", "fn f() { g(\"Held\") } // for every row, forever"),
            ("docs/a.md", "what `held` is"),
        ] {
            let found = check(path, text);
            assert!(found.is_empty(), "{path}: {text}: {}", found[0]);
        }
    }

    #[test]
    fn a_violation_says_the_replacement() {
        let found = check("docs/a.md", "\nwhom");
        assert_eq!(found[0].to_string(), "docs/a.md:2: \"whom\": say a clause with a noun: the client that …");
    }
}
