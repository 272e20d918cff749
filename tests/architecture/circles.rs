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
    source::{Found, Mention, Source, absolute, sources},
    violation::{Rule, Violation, assert_none},
};

/// From a file to those that it needs, each with the line and the name of the first use.
type Needs<'a> = BTreeMap<&'a str, BTreeMap<&'a str, (usize, String)>>;

struct Tree<'a> {
    /// By module; the root is "".
    files: BTreeMap<&'a str, &'a Source>,
}

impl<'a> Tree<'a> {
    fn new(sources: &'a [Source]) -> Self {
        let name = |source: &'a Source| if source.module == "lib" { "" } else { source.module.as_str() };
        // The binary's own root, which nothing can import.
        let library = sources.iter().filter(|source| source.module != "main");
        let mut files: BTreeMap<_, _> = library.map(|source| (name(source), source)).collect();
        let is_child_for_tests = |module: &str| {
            let (parent, child) = module.rsplit_once("::").unwrap_or(("", module));
            files.get(parent).is_some_and(|parent| parent.children.get(child) == Some(&true))
        };
        let tests: Vec<&str> = files.keys().copied().filter(|module| is_child_for_tests(module)).collect();
        files.retain(|module, _| !tests.iter().any(|test| crate::source::within(module, test)));
        Self { files }
    }

    /// The file that defines what an absolute path names; `None` for a module, which is not an item.
    fn definition(&self, path: &[String], depth: usize) -> Option<&'a Source> {
        let depth_of_file =
            (0..=path.len()).rev().find(|length| self.files.contains_key(path[..*length].join("::").as_str()))?;
        let file = self.files[path[..depth_of_file].join("::").as_str()];
        let [item, rest @ ..] = &path[depth_of_file..] else { return None };
        let imported = self.import(file, item).filter(|_| depth < 16);
        match imported.and_then(|import| self.target(file, import)) {
            Some(target) => self.definition(&[&target[..], rest].concat(), depth + 1),
            // A crate's item that is passed on; what glob, macro or `std` brings in counts as the file's own.
            None if imported.is_some() => None,
            None => Some(file),
        }
    }

    fn import(&self, file: &'a Source, name: &str) -> Option<&'a Found<Mention>> {
        let is_name = |path: &&Found<Mention>| path.is.import.as_ref().is_some_and(|import| import.name == name);
        file.paths.iter().filter(|path| !path.is_test).find(is_name)
    }

    /// Where a path in a file leads, if to something of ours: by `crate`, `self` or `super`, an import or a child.
    fn target(&self, file: &'a Source, path: &Found<Mention>) -> Option<Vec<String>> {
        let segments = &path.is.segments;
        let module = if file.module == "lib" { "" } else { &path.module };
        if let Some(target) = absolute(module, segments) {
            return Some(target);
        }
        let (first, rest) = segments.split_first()?;
        if file.children.contains_key(first) {
            let parent = module.split("::").filter(|part| !part.is_empty()).map(str::to_owned);
            return Some(parent.chain(segments.iter().cloned()).collect());
        }
        let import = self.import(file, first).filter(|import| !std::ptr::eq(*import, path))?;
        // `use a::a;` would lead back to itself.
        let is_itself = import.is.segments.first() == Some(first);
        let target = if is_itself { None } else { self.target(file, import) };
        target.map(|target| [&target[..], rest].concat())
    }

    fn needs(&self) -> Needs<'a> {
        let mut needs = Needs::new();
        for file in self.files.values().copied() {
            let is_reexport = |path: &Mention| path.import.as_ref().is_some_and(|import| import.is_public);
            for path in file.paths.iter().filter(|path| !path.is_test && !is_reexport(&path.is)) {
                let target = self.target(file, path);
                let Some(other) = target.and_then(|target| self.definition(&target, 0)) else { continue };
                if other.path != file.path {
                    let to = needs.entry(file.path.as_str()).or_default();
                    to.entry(other.path.as_str()).or_insert((path.line, path.is.segments.join("::")));
                }
            }
        }
        needs
    }
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
fn circles(sources: &[Source]) -> Vec<Violation> {
    let needs = Tree::new(sources).needs();
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
        let text = |(from, to): &(&str, &str)| {
            let (line, name) = &needs[from][to];
            format!("{from}:{line} uses {name} of {to}")
        };
        let what = hops.iter().map(text).collect::<Vec<_>>().join(", ");
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
