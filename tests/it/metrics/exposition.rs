//! A parser of Prometheus' text format, as far as these tests need it.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Family {
    pub help: String,
    pub kind: String,
    /// Each series with its labels; a histogram's buckets, sum and count are one series.
    pub series: BTreeSet<String>,
}

/// Returns the families by name.
pub fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(about) = line.strip_prefix("# ") {
            let mut words = about.splitn(3, ' ');
            let (what, name, rest) = (words.next(), words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let family = families.entry(name.into()).or_default();
            match what {
                Some("HELP") => family.help = rest.into(),
                Some("TYPE") => family.kind = rest.into(),
                _ => panic!("neither help nor type: {line}"),
            }
        } else {
            let series = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}")).0;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|part| name.strip_suffix(part))
                .find(|base| families.get(*base).is_some_and(|family| family.kind == "histogram"))
                .unwrap_or(name);
            let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.starts_with("le="));
            let labels = labels.collect::<Vec<_>>().join(",");
            families.entry(base.into()).or_default().series.insert(labels);
        }
    }
    families
}

/// Returns which families have no help or no type.
pub fn faults(families: &BTreeMap<String, Family>) -> Vec<String> {
    let faults = families.iter().flat_map(|(name, family)| {
        [(family.help.is_empty(), "no help"), (family.kind.is_empty(), "no type")]
            .into_iter()
            .filter(|(wrong, _)| *wrong)
            .map(move |(_, what)| format!("{name}: {what}"))
    });
    faults.collect()
}

/// Returns the series of `after` that are not in `before`.
pub fn new_series(before: &BTreeMap<String, Family>, after: &BTreeMap<String, Family>) -> Vec<String> {
    let known = |name: &str, labels: &str| before.get(name).is_some_and(|family| family.series.contains(labels));
    let all = after.iter().flat_map(|(name, family)| family.series.iter().map(move |labels| (name, labels)));
    all.filter(|(name, labels)| !known(name, labels)).map(|(name, labels)| format!("{name}{{{labels}}}")).collect()
}

#[test]
fn parser_finds_a_missing_help_and_a_growing_label() {
    let good = "# HELP a_total Counted.\n# TYPE a_total counter\na_total{x=\"1\"} 1\n\n# HELP b_seconds Timed.\n\
                # TYPE b_seconds histogram\nb_seconds_bucket{x=\"1\",le=\"0.5\"} 1\nb_seconds_bucket{x=\"1\",le=\"+Inf\"} 1\n\
                b_seconds_sum{x=\"1\"} 0.1\nb_seconds_count{x=\"1\"} 1\n";
    let families = parse(good);
    assert_eq!(faults(&families), [""; 0]);
    assert_eq!(families["b_seconds"].series, BTreeSet::from(["x=\"1\"".to_owned()]));

    let bad = parse(&good.replace("# HELP a_total Counted.\n", "").replace("# TYPE b_seconds histogram\n", ""));
    assert!(faults(&bad).contains(&"a_total: no help".to_owned()), "{bad:?}");
    assert!(faults(&bad).contains(&"b_seconds: no type".to_owned()), "{bad:?}");

    let more = parse(&format!("{good}a_total{{x=\"0192\"}} 1\n"));
    assert_eq!(new_series(&families, &more), ["a_total{x=\"0192\"}"]);
}
