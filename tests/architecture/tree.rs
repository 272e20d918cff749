//! Finds the file that defines what a path names.
//!
//! A path is followed through imports and re-exports of whole files. Names inside of functions, methods and what a macro
//! makes are not followed; they count as defined where the path ends.

use std::{collections::BTreeMap, sync::LazyLock};

use crate::source::{Found, Mention, Source, absolute, sources, within};

/// That of the program.
pub static TREE: LazyLock<Tree<'static>> = LazyLock::new(|| Tree::new(sources()));

pub struct Tree<'a> {
    /// By module; the root is "".
    pub files: BTreeMap<&'a str, &'a Source>,
}

impl<'a> Tree<'a> {
    pub fn new(sources: &'a [Source]) -> Self {
        let name = |source: &'a Source| if source.module == "lib" { "" } else { source.module.as_str() };
        // The binary's own root, which nothing can import.
        let library = sources.iter().filter(|source| source.module != "main");
        let mut files: BTreeMap<_, _> = library.map(|source| (name(source), source)).collect();
        let is_child_for_tests = |module: &str| {
            let (parent, child) = module.rsplit_once("::").unwrap_or(("", module));
            files.get(parent).is_some_and(|parent| parent.children.get(child) == Some(&true))
        };
        let tests: Vec<&str> = files.keys().copied().filter(|module| is_child_for_tests(module)).collect();
        files.retain(|module, _| !tests.iter().any(|test| within(module, test)));
        Self { files }
    }

    /// The file that defines what an absolute path names; `None` for a module, which is not an item.
    pub fn definition(&self, path: &[String], depth: usize) -> Option<&'a Source> {
        let depth_of_file =
            (0..=path.len()).rev().find(|length| self.files.contains_key(path[..*length].join("::").as_str()))?;
        let file = self.files[path[..depth_of_file].join("::").as_str()];
        let [item, rest @ ..] = &path[depth_of_file..] else { return None };
        let imported = self.import(file, item).filter(|_| depth < 16);
        match imported.and_then(|import| self.target(file, import)) {
            Some(target) => self.definition(&[&target[..], rest].concat(), depth + 1),
            // An item of another crate that is passed on.
            None if imported.is_some() => None,
            // What a glob or a macro brings in counts as the file's own.
            None => Some(file),
        }
    }

    fn import(&self, file: &'a Source, name: &str) -> Option<&'a Found<Mention>> {
        let is_name = |path: &&Found<Mention>| path.is.import.as_ref().is_some_and(|import| import.name == name);
        file.paths.iter().filter(|path| !path.is_test).find(is_name)
    }

    /// Where a path in a file leads, if to something of ours: by `crate`, `self` or `super`, an import or a child.
    pub fn target(&self, file: &'a Source, path: &Found<Mention>) -> Option<Vec<String>> {
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
}
