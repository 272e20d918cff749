//! Reads Rust files into the flat lists that the rules look at: paths, imports, literals, macros and words.
//!
//! `syn` gives the items: modules, with `#[cfg(test)]`, and imports. Everything else is walked as tokens, because a
//! macro's body is nothing else: so a path, a literal or a nested macro inside `tokio::select!` or `json!` is found
//! like any other. Nothing is expanded and no type is inferred. Comments are not tokens; the rules that need them read
//! `Source::text`.

use std::{collections::BTreeMap, fs, ops::Range, path::Path, sync::LazyLock};

use proc_macro2::{Delimiter, Ident, Span, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, Item, ItemMod, Lit, UseTree, Visibility, spanned::Spanned};

/// One file, and what was found in it.
#[derive(Default)]
pub struct Source {
    pub path: String,
    pub text: String,
    /// From the crate's root, as in `core::db`. That of `lib.rs` is `lib`.
    pub module: String,
    pub paths: Vec<Found<Mention>>,
    pub literals: Vec<Found<Literal>>,
    pub macros: Vec<Found<Call>>,
    /// Every identifier of the code, keywords included, with whether it is inside an attribute.
    pub words: Vec<Found<(String, bool)>>,
    /// The environment variables that clap is to read: each `env = "NAME"`.
    pub variables: Vec<Found<String>>,
    /// Modules with a file of their own (`mod x;`), with whether only tests see them.
    pub children: BTreeMap<String, bool>,
    pub local_macros: Vec<String>,
}

/// Something that was found, and where.
pub struct Found<T> {
    pub line: usize,
    /// The module it is in, from the crate's root: that of the file, or one written out in the file.
    pub module: String,
    pub is_test: bool,
    pub is: T,
}

/// A path, or one leaf of a `use`.
pub struct Mention {
    pub segments: Vec<String>,
    /// The name that it brings into scope, if it is an import.
    pub import: Option<Import>,
}

pub struct Import {
    pub name: String,
    pub is_public: bool,
}

pub struct Literal {
    pub value: String,
    /// How many lines of the file it takes.
    pub lines: usize,
}

/// The use of a macro, or the definition of one (`macro_rules`).
pub struct Call {
    pub name: String,
    /// Its first token, if that is a string.
    pub first: Option<String>,
    /// Which of `Source::literals` are inside.
    pub literals: Range<usize>,
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file's text; empty if there is none, so that a rule reports what is missing.
pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_default()
}

/// The files below a folder whose names end so, in order.
pub fn files(folder: &str, ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(folder)).expect("a folder of the source tree") {
        let entry = entry.expect("an entry of the source tree");
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            found.extend(files(&path, ending));
        } else if path.ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The Rust files of the program, read once for all rules.
pub fn sources() -> &'static [Source] {
    static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(|| read_all("src"));
    &SOURCES
}

/// Those of its tests.
pub fn tests() -> &'static [Source] {
    static TESTS: LazyLock<Vec<Source>> = LazyLock::new(|| read_all("tests"));
    &TESTS
}

fn read_all(folder: &str) -> Vec<Source> {
    let files = files(folder, ".rs");
    assert!(files.len() > 1, "{folder}/ was not found");
    files.iter().map(|file| Source::new(file, &read(file))).collect()
}

/// Whether a path or a module's name is `prefix` or lies below it; everything lies below "".
pub fn within(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with("::"))
}

/// A path's target from the crate's root; `None` when its first segment does not say that it is ours.
pub fn absolute(module: &str, segments: &[String]) -> Option<Vec<String>> {
    let ups = segments.iter().take_while(|segment| ["self", "super"].contains(&segment.as_str())).count();
    let (skip, mut base): (usize, Vec<String>) = match segments.first()?.as_str() {
        "crate" | "app" => (1, Vec::new()),
        "self" | "super" => (ups, module.split("::").map(str::to_owned).collect()),
        _ => return None,
    };
    let supers = segments[..ups].iter().filter(|segment| *segment == "super").count();
    base.truncate(base.len().saturating_sub(supers));
    base.extend_from_slice(&segments[skip..]);
    Some(base)
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let file =
            syn::parse_file(text).unwrap_or_else(|error| panic!("{path}:{}: {error}", error.span().start().line));
        let module = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        let module = module.replace('/', "::");
        let source = Self { path: path.into(), text: text.into(), module: module.clone(), ..Self::default() };
        let mut reader = Reader { source, module, is_test: false, is_attribute: false };
        file.items.iter().for_each(|item| reader.item(item));
        reader.source
    }

    pub fn is_in(&self, homes: &[&str]) -> bool {
        homes.iter().any(|home| self.path == *home || home.ends_with('/') && self.path.starts_with(home))
    }
}

struct Reader {
    source: Source,
    module: String,
    is_test: bool,
    is_attribute: bool,
}

impl Reader {
    fn item(&mut self, item: &Item) {
        match item {
            Item::Mod(item) => self.item_mod(item),
            Item::Use(item) => self.leaves(&item.tree, &[], !matches!(item.vis, Visibility::Inherited)),
            other => self.walk(other.to_token_stream(), &[]),
        }
    }

    fn item_mod(&mut self, item: &ItemMod) {
        let is_test = self.is_test || item.attrs.iter().any(is_for_tests);
        let Some((_, items)) = &item.content else {
            self.source.children.insert(item.ident.to_string(), is_test);
            return;
        };
        let outer = (self.module.clone(), self.is_test);
        self.module = format!("{}::{}", self.module, item.ident);
        self.is_test = is_test;
        items.iter().for_each(|item| self.item(item));
        (self.module, self.is_test) = outer;
    }

    /// Notes each leaf of a `use`.
    fn leaves(&mut self, tree: &UseTree, path: &[String], is_public: bool) {
        let (word, alias) = match tree {
            UseTree::Path(tree) => {
                let path = [path, &[tree.ident.to_string()]].concat();
                return self.leaves(&tree.tree, &path, is_public);
            }
            UseTree::Group(group) => return group.items.iter().for_each(|item| self.leaves(item, path, is_public)),
            UseTree::Name(name) => (self.word(&name.ident), None),
            UseTree::Rename(rename) => (self.word(&rename.ident), Some(rename.rename.to_string())),
            UseTree::Glob(_) => ("*".to_owned(), None),
        };
        let mut segments = path.to_vec();
        segments.extend((word != "self" || path.is_empty()).then_some(word));
        let name = alias.or_else(|| segments.last().cloned()).unwrap_or_default();
        self.mention(tree.span(), segments, Some(Import { name, is_public }));
    }

    /// Notes what tokens hold. `prefix` is the path whose group these tokens are.
    fn walk(&mut self, tokens: TokenStream, prefix: &[String]) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let is = |at: usize, sign: char| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == sign);
        let group = |at: usize| match tokens.get(at) {
            Some(TokenTree::Group(group)) => Some((group.delimiter(), group.stream())),
            _ => None,
        };
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            let is_field = at > 0 && is(at - 1, '.') && !(at > 1 && is(at - 2, '.'));
            let is_attribute = at > 0 && is(at - 1, '#');
            at += 1;
            match token {
                // What is visible where imports nothing.
                TokenTree::Ident(word) if word == "pub" => at += usize::from(group(at).is_some()),
                TokenTree::Ident(word) => {
                    let mut segments = prefix.to_vec();
                    segments.push(self.word(word));
                    while is(at, ':') && is(at + 1, ':') {
                        match tokens.get(at + 2) {
                            Some(TokenTree::Ident(word)) => segments.push(self.word(word)),
                            Some(TokenTree::Group(leaves)) => self.walk(leaves.stream(), &segments),
                            _ => break,
                        }
                        at += 3;
                    }
                    if is(at, '!') {
                        at += self.call(word.span(), &segments, &tokens[at + 1..]);
                    }
                    if word == "env" && self.is_attribute && is(at, '=') {
                        self.variable(tokens.get(at + 1));
                    }
                    // A small word alone is a variable or a keyword, unless it is called.
                    let is_called = group(at).is_some_and(|(delimiter, _)| delimiter == Delimiter::Parenthesis);
                    let is_path = segments.len() > 1 || segments[0].starts_with(char::is_uppercase) || is_called;
                    if is_path && !is_field {
                        self.mention(word.span(), segments, None);
                    }
                }
                TokenTree::Group(inner) if is_doc(inner.stream()) => {}
                TokenTree::Group(inner) => {
                    let outer = self.is_attribute;
                    self.is_attribute |= is_attribute;
                    self.walk(inner.stream(), &[]);
                    self.is_attribute = outer;
                }
                TokenTree::Literal(literal) => self.literal(&Lit::new(literal.clone())),
                TokenTree::Punct(_) => {}
            }
        }
    }

    /// Notes a macro, if that is what follows a path and `!`, and returns how many tokens it took.
    fn call(&mut self, span: Span, path: &[String], tokens: &[TokenTree]) -> usize {
        let (body, taken) = match tokens {
            [TokenTree::Group(body), ..] => (body.stream(), 2),
            [TokenTree::Ident(defined), TokenTree::Group(body), ..] => {
                self.source.local_macros.push(defined.to_string());
                (body.stream(), 3)
            }
            _ => return 0,
        };
        let first = body.clone().into_iter().next().as_ref().and_then(string);
        let begin = self.source.literals.len();
        self.walk(body, &[]);
        let name = path.last().cloned().unwrap_or_default();
        let call = self.found(span, Call { name, first, literals: begin..self.source.literals.len() });
        self.source.macros.push(call);
        taken
    }

    fn found<T>(&self, span: Span, is: T) -> Found<T> {
        Found { line: span.start().line, module: self.module.clone(), is_test: self.is_test, is }
    }

    fn mention(&mut self, span: Span, segments: Vec<String>, import: Option<Import>) {
        let mention = self.found(span, Mention { segments, import });
        self.source.paths.push(mention);
    }

    fn word(&mut self, word: &Ident) -> String {
        let found = self.found(word.span(), (word.to_string(), self.is_attribute));
        self.source.words.push(found);
        word.to_string()
    }

    fn variable(&mut self, name: Option<&TokenTree>) {
        if let Some((token, name)) = name.and_then(|token| Some((token, string(token)?))) {
            let variable = self.found(token.span(), name);
            self.source.variables.push(variable);
        }
    }

    fn literal(&mut self, literal: &Lit) {
        let value = match literal {
            Lit::Str(text) => text.value(),
            Lit::ByteStr(bytes) => String::from_utf8_lossy(&bytes.value()).into_owned(),
            _ => return,
        };
        let lines = literal.span().end().line - literal.span().start().line + 1;
        let literal = self.found(literal.span(), Literal { value, lines });
        self.source.literals.push(literal);
    }
}

fn string(token: &TokenTree) -> Option<String> {
    match token {
        TokenTree::Literal(literal) => match Lit::new(literal.clone()) {
            Lit::Str(text) => Some(text.value()),
            _ => None,
        },
        _ => None,
    }
}

fn is_for_tests(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
}

/// Whether a group is what `///` becomes among tokens.
fn is_doc(group: TokenStream) -> bool {
    matches!(group.into_iter().next(), Some(TokenTree::Ident(word)) if word == "doc")
}
