//! `docs/openapi.json` is the generated document, and a change that breaks clients is in the changelog.
//!
//! A change of the API changes the generated document, so the test fails until the committed one is rewritten:
//! `UPDATE_OPENAPI=1 cargo test --test openapi`. Where a change breaks clients, this refuses to write until the
//! unreleased section of CHANGELOG.md has the line `- breaking: …` that the failure prints.

use std::{fs, path::PathBuf, process::Command};

use serde_json::Value;

use crate::{breaking::breaking_changes, document};

const COMMITTED: &str = "docs/openapi.json";

fn path(relative: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(relative)
}

fn read(relative: &str) -> String {
    fs::read_to_string(path(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"))
}

/// Returns the document of the last commit, or the one in the folder where git or the commit is missing.
fn baseline() -> Value {
    let git = Command::new("git").args(["show", &format!("HEAD:{COMMITTED}")]).current_dir(path("")).output();
    let text = match git {
        Ok(output) if output.status.success() => output.stdout,
        _ => fs::read(path(COMMITTED)).unwrap_or_else(|_| b"{}".to_vec()),
    };
    serde_json::from_slice(&text).expect("the committed document is JSON")
}

/// Returns the breaking changes that the unreleased section of the changelog does not name.
fn unnamed(changes: Vec<String>, changelog: &str) -> Vec<String> {
    let unreleased = changelog.split("\n## ").find(|section| section.starts_with("[Unreleased]")).unwrap_or_default();
    // Long lines are wrapped.
    let unreleased = unreleased.split_whitespace().collect::<Vec<_>>().join(" ");
    changes.into_iter().filter(|change| !unreleased.contains(&format!("- breaking: {change}"))).collect()
}

#[test]
fn committed_document_is_the_generated_one_and_breaks_no_client() {
    let generated = document();
    let text = format!("{}\n", serde_json::to_string_pretty(&generated).expect("serializes"));

    let unnamed = unnamed(breaking_changes(&baseline(), &generated), &read("CHANGELOG.md"));

    let lines: String = unnamed.iter().map(|change| format!("- breaking: {change}\n")).collect();
    assert!(
        unnamed.is_empty(),
        "these changes break clients; undo them, or add to the unreleased section of CHANGELOG.md:\n{lines}"
    );
    if std::env::var_os("UPDATE_OPENAPI").is_some_and(|value| value == "1") {
        fs::write(path(COMMITTED), text).expect(COMMITTED);
    } else {
        assert!(
            read(COMMITTED) == text,
            "{COMMITTED} is not the generated document: run UPDATE_OPENAPI=1 cargo test --test openapi, and commit it"
        );
    }
}

#[test]
fn breaking_changes_are_named_in_the_unreleased_section_only() {
    let changes = || vec!["GET /a is removed".to_owned(), "GET /b is removed".to_owned()];
    let changelog = "# Changelog\n\n## [Unreleased]\n\n- breaking: GET /a is\n  removed\n\n## [0.1.0]\n\n- breaking: GET /b is removed\n";

    assert_eq!(unnamed(changes(), changelog), ["GET /b is removed"]);
    assert_eq!(unnamed(changes(), ""), changes());
}
