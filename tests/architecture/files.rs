//! What every file has to be: begun with a header, named after its content, small, finished, and silent.

use crate::{
    source::{Source, tests},
    violation::{Rule, Violation, assert_none, violations},
};

const NAMELESS: &[&str] = &["utils", "util", "helpers", "helper", "common", "misc"];
const MAIN_LINES: usize = 40;
const COMMAND_LINES: usize = 100;
const FILE_LINES: usize = 400;

pub fn header(source: &Source) -> Vec<Violation> {
    let is_there = source.text.starts_with("//!");
    if is_there { Vec::new() } else { vec![Violation::new(Rule::Header, &source.path, 1, "no header")] }
}

pub fn name(source: &Source) -> Vec<Violation> {
    let parts = source.path.split('/').map(|part| part.trim_end_matches(".rs"));
    let nameless = parts.filter(|part| NAMELESS.contains(part));
    nameless.map(|part| Violation::new(Rule::Name, &source.path, 1, format!("named {part}"))).collect()
}

pub fn size(source: &Source) -> Vec<Violation> {
    let lines = source.text.lines().count();
    let limits = [
        ("main", MAIN_LINES, source.path == "src/main.rs"),
        ("command", COMMAND_LINES, source.path.starts_with("src/commands/")),
        ("file", FILE_LINES, true),
    ];
    let over = limits.iter().filter(|(_, limit, applies)| *applies && lines > *limit);
    over.map(|(kind, ..)| Violation::new(Rule::Size, &source.path, 1, format!("{kind} of {lines} lines"))).collect()
}

pub fn leftovers(source: &Source) -> Vec<Violation> {
    let calls = source.macros.iter().filter(|call| ["todo", "unimplemented", "dbg"].contains(&call.is.name.as_str()));
    let mut found: Vec<_> = calls.map(|call| (call.line, format!("{}!", call.is.name))).collect();
    let words = source.words.iter().filter(|word| match (word.is.0.as_str(), word.is.1) {
        ("ignore", is_in_attribute) => is_in_attribute,
        ("unwrap", _) => source.path.starts_with("src/") && !word.is_test,
        _ => false,
    });
    found.extend(words.map(|word| (word.line, word.is.0.clone())));
    found.into_iter().map(|(line, what)| Violation::new(Rule::Leftover, &source.path, line, what)).collect()
}

pub fn prints(source: &Source) -> Vec<Violation> {
    let prints = source.macros.iter().filter(|call| ["print", "println"].contains(&call.is.name.as_str()));
    prints.map(|call| Violation::at(source, Rule::Print, call, format!("{}!", call.is.name))).collect()
}

#[test]
fn every_file_has_a_header() {
    assert_none(violations(header));
}

#[test]
fn files_are_named_after_their_content() {
    assert_none(violations(name));
}

#[test]
fn files_stay_small() {
    assert_none(violations(size));
}

#[test]
fn nothing_is_left_over() {
    let mut found = violations(leftovers);
    found.extend(tests().iter().flat_map(leftovers));
    assert_none(found);
}

#[test]
fn only_commands_print() {
    assert_none(violations(prints));
}

mod catches {
    use super::*;
    use crate::violation::cases::{assert_catches, assert_lets_pass};

    #[test]
    fn missing_headers() {
        assert_catches(
            header,
            &[("src/a.rs", "use std::fmt;\n// Late.\n"), ("src/a.rs", "// Quiet.\n"), ("src/a.rs", "")],
        );
        assert_lets_pass(header, &[("src/a.rs", "//! What it does.\n")]);
    }

    #[test]
    fn nameless_files() {
        assert_catches(name, &[("src/utils.rs", ""), ("src/core/helpers/mod.rs", ""), ("src/api/common.rs", "")]);
        assert_lets_pass(name, &[("src/core/communion.rs", "")]);
    }

    #[test]
    fn large_files() {
        let lines = |count: usize| "//\n".repeat(count);
        assert_catches(
            size,
            &[("src/main.rs", &lines(41)), ("src/commands/dev.rs", &lines(101)), ("src/api/jobs.rs", &lines(401))],
        );
        assert_lets_pass(
            size,
            &[("src/main.rs", &lines(40)), ("src/commands/dev.rs", &lines(100)), ("src/api/jobs.rs", &lines(400))],
        );
    }

    #[test]
    fn things_left_over() {
        assert_catches(
            leftovers,
            &[
                ("src/a.rs", "fn f() { g().unwrap(); }"),
                ("src/a.rs", "fn f() { x\n    .map(Option::unwrap); }"),
                ("src/a.rs", "fn f() { info!(a = g().unwrap()); }"),
                ("src/a.rs", "#[cfg(test)]\nmod tests {}\nfn f() { g().unwrap(); }"),
                ("src/a.rs", "mod inner { fn f() { g().unwrap(); } }"),
                ("src/a.rs", "#[cfg(test)]\nmod tests { fn f() { todo!() } }"),
                ("src/a.rs", "fn f() { unimplemented!(\"later\") }"),
                ("src/a.rs", "fn f() { vec![todo!()] }"),
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
        assert_catches(
            prints,
            &[("src/api/jobs.rs", "println!(\"x\")"), ("src/commands/dev.rs", "std::print!(\"x\")")],
        );
        assert_lets_pass(prints, &[("src/main.rs", "eprintln!(\"println!\") // print!\n")]);
    }
}
