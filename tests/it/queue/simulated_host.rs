//! Reads the ledgers of simulated hosts, which list all effective creates, starts and removals of containers, and the
//! files that the hosts left.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// One operation that had an effect.
#[derive(Debug)]
pub struct Entry {
    pub at: OffsetDateTime,
    pub op: String,
    pub instance: String,
    pub generation: i64,
}

/// Reads the ledgers of all clusters under these state directories, sorted by time.
pub fn ledger(state_dirs: &[&Path]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = state_dirs
        .iter()
        .flat_map(|dir| clusters(dir))
        .filter_map(|cluster| fs::read_to_string(cluster.join("ledger.log")).ok())
        .flat_map(|text| text.lines().map(entry).collect::<Vec<_>>())
        .collect();
    entries.sort_by_key(|entry| entry.at);
    entries
}

fn clusters(state_dir: &Path) -> Vec<std::path::PathBuf> {
    let found = fs::read_dir(state_dir.join("simulated")).into_iter().flatten();
    found.map(|entry| entry.unwrap().path()).collect()
}

fn entry(line: &str) -> Entry {
    let line: Value = serde_json::from_str(line).unwrap();
    let text = |name: &str| line[name].as_str().unwrap().to_owned();
    Entry {
        at: OffsetDateTime::parse(&text("at"), &Rfc3339).unwrap(),
        op: text("op"),
        instance: text("instance"),
        generation: line["generation"].as_i64().unwrap(),
    }
}

/// Asserts I2 and I4 for one instance: never two containers over all hosts, and one effective create of each
/// generation.
#[track_caller]
pub fn assert_exactly_once(ledger: &[Entry], instance: &str) {
    let of_it: Vec<&Entry> = ledger.iter().filter(|entry| entry.instance == instance).collect();
    let mut there = 0;
    let mut creates: BTreeMap<i64, u32> = BTreeMap::new();
    for entry in &of_it {
        match entry.op.as_str() {
            "create" => {
                there += 1;
                *creates.entry(entry.generation).or_default() += 1;
            }
            "rm" => there -= 1,
            _ => {}
        }
        assert!(there <= 1, "two containers of one instance: {of_it:#?}");
    }
    assert!(!creates.is_empty(), "never created: {of_it:#?}");
    assert!(creates.values().all(|n| *n == 1), "created more than once: {of_it:#?}");
}

/// Returns the names of containers and networks that are left under a state directory.
pub fn leftovers(state_dir: &Path) -> Vec<String> {
    let mut left = Vec::new();
    for cluster in clusters(state_dir) {
        for folder in ["instances", "networks"] {
            let entries = fs::read_dir(cluster.join(folder)).unwrap();
            left.extend(entries.map(|entry| format!("{folder}/{}", entry.unwrap().file_name().display())));
        }
    }
    left
}

/// Returns the directory where a simulated host keeps this cluster's containers.
pub fn instances_dir(state_dir: &Path) -> std::path::PathBuf {
    let clusters = clusters(state_dir);
    assert_eq!(clusters.len(), 1, "{clusters:?}");
    clusters[0].join("instances")
}
