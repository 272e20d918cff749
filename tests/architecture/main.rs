//! The rules of `docs/architecture.md` and `CONTRIBUTING.md` that can be checked by reading the source.
//!
//! Each rule is a function from what was read to its violations, so that `mod catches` beside it can show what it must
//! catch and what it must let pass. All violations of a rule are reported at once. `violation.rs` has the exceptions.

mod arrows;
mod circles;
mod crates;
mod files;
mod source;
mod sql;
mod tree;
mod violation;
mod words;

use violation::{Violation, unneeded, violations};

#[test]
fn every_exception_is_still_needed() {
    let rules = [
        arrows::arrows,
        crates::environment,
        crates::homes,
        files::header,
        files::leftovers,
        files::name,
        files::prints,
        files::size,
        sql::columns,
        sql::sql,
    ];
    let mut found: Vec<Violation> = rules.into_iter().flat_map(violations).collect();
    found.extend(circles::circles(source::sources()));
    found.extend(sql::all_forms());
    found.extend(words::everywhere());
    let unneeded = unneeded(&found);
    assert!(unneeded.is_empty(), "these rows of EXCEPTIONS allow nothing; remove them:\n{}", unneeded.join("\n"));
}
