//! No circle of files: what a file needs must be readable without the files that need it.
//!
//! A file needs another when its code, test modules aside, names an item that the other one defines. To find the
//! definition, a path is followed through imports and re-exports. So a parent that declares `mod x; pub use x::Y;` and
//! itself never uses `Y` does not need `x`, and whoever imports `parent::Y` needs `x` alone. A parent and a child are a
//! circle only when the child uses an item that the parent defines (`super::Z`) and code of the parent, not just its
//! re-exports, uses an item of the child. A module that is named only to reach something in it is not needed either,
//! but `use module::*` needs the module's file. Methods are not followed, since that takes types.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    source::{Mention, Source, sources},
    tree::Tree,
    violation::{Rule, Violation, assert_none},
};

/// From a file to those that it needs, each with the line and the name of the first use.
type Needs<'a> = BTreeMap<&'a str, BTreeMap<&'a str, (usize, String)>>;

fn needs<'a>(tree: &Tree<'a>) -> Needs<'a> {
    let mut needs = Needs::new();
    for file in tree.files.values().copied() {
        let is_reexport = |path: &Mention| path.import.as_ref().is_some_and(|import| import.is_public);
        for path in file.paths.iter().filter(|path| !path.is_test && !is_reexport(&path.is)) {
            let target = tree.target(file, path);
            let Some(other) = target.and_then(|target| tree.definition(&target, 0)) else { continue };
            if other.path != file.path {
                let to = needs.entry(file.path.as_str()).or_default();
                to.entry(other.path.as_str()).or_insert((path.line, path.is.segments.join("::")));
            }
        }
    }
    needs
}

/// The shortest way from one file to another.
fn way<'a>(needs: &Needs<'a>, from: &'a str, to: &str) -> Option<Vec<&'a str>> {
    let (mut queue, mut seen) = (VecDeque::from([vec![from]]), BTreeSet::from([from]));
    while let Some(way) = queue.pop_front() {
        let last = way[way.len() - 1];
        if last == to {
            return Some(way);
        }
        for next in needs.get(last).into_iter().flat_map(BTreeMap::keys).copied() {
            if seen.insert(next) {
                queue.push_back([&way[..], &[next]].concat());
            }
        }
    }
    None
}

/// Circles, the shortest first. Of those that have an import in common, one is enough: without the import all are gone.
pub fn circles(sources: &[Source]) -> Vec<Violation> {
    let needs = needs(&Tree::new(sources));
    let edges = needs.iter().flat_map(|(from, to)| to.keys().map(move |to| (*from, *to)));
    let mut circles: Vec<Vec<&str>> =
        edges.filter_map(|(from, to)| Some([&[from], &way(&needs, to, from)?[..]].concat())).collect();
    circles.sort_by_key(Vec::len);
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    for circle in circles {
        let hops: Vec<(&str, &str)> = circle.windows(2).map(|hop| (hop[0], hop[1])).collect();
        if hops.iter().any(|hop| seen.contains(hop)) {
            continue;
        }
        let uses = hops.iter().map(|(from, to)| {
            let (line, name) = &needs[from][to];
            format!("{from}:{line} uses {name}")
        });
        let what = uses.collect::<Vec<_>>().join(", and ");
        let (from, to) = hops[0];
        found.push(Violation::new(Rule::Circle, from, needs[from][to].0, what));
        seen.extend(hops);
    }
    found
}

#[test]
fn files_do_not_import_each_other_in_circles() {
    assert_none(circles(sources()));
}

mod catches {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
        circles(&sources).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn circles_of_files() {
        let two = [("src/a.rs", "use crate::b::B; pub struct A(B);"), ("src/b.rs", "pub struct B; use crate::a::A;")];
        assert_eq!(found(&two).len(), 1, "two files");

        let three = [
            ("src/a.rs", "use crate::b; fn f() -> b::B { b::B }"),
            ("src/b.rs", "pub struct B; fn f() { info!(x = crate::c::C) }"),
            ("src/c.rs", "pub struct C; use super::a::*;"),
        ];
        assert_eq!(found(&three).len(), 1, "three files, through a module, a macro and a glob");

        let hidden = [
            ("src/lib.rs", "mod a; mod p;"),
            ("src/a.rs", "use crate::p::C; pub struct A(C);"),
            ("src/p/mod.rs", "mod c; pub use c::C;"),
            ("src/p/c.rs", "pub struct C; use crate::a::A;"),
        ];
        assert_eq!(found(&hidden).len(), 1, "through a re-export");

        let family = [
            ("src/p/mod.rs", "mod c; pub use c::C; pub struct Z; fn f() -> C { C }"),
            ("src/p/c.rs", "use super::Z; pub struct C(Z);"),
        ];
        assert_eq!(found(&family).len(), 1, "a parent whose code uses what its child defines");
        let family = [("src/p/mod.rs", "mod c; pub struct Z; fn f() { c::g() }"), family[1]];
        assert_eq!(found(&family).len(), 1, "the same by the child's name");
    }

    #[test]
    fn no_circles() {
        let family = [
            ("src/p/mod.rs", "mod c; mod d; pub use c::C; pub use d::D; pub struct Z; use crate::q::Q;"),
            ("src/p/c.rs", "use super::{D, Q, Z}; pub struct C(Z);"),
            ("src/p/d.rs", "pub struct D;"),
            ("src/q.rs", "pub struct Q; pub(in crate::p) fn f() {}"),
        ];
        assert_eq!(found(&family), [""; 0], "a parent that only passes on what its children define");

        let tests = [
            ("src/a.rs", "use crate::b::B; #[cfg(test)] mod model;"),
            ("src/a/model.rs", "use super::*; fn f() { crate::b::g() }"),
            ("src/b.rs", "pub struct B; #[cfg(test)] mod tests { use crate::a::A; } pub fn g() {}"),
        ];
        assert_eq!(found(&tests), [""; 0], "test modules");
    }
}
