//! A YAML document as nodes that know where they stand; `${…}` is resolved here, in scalars only.
//!
//! The text is parsed once, into an arena. Everything later reads nodes, so that each finding can
//! point at the exact bytes, and one fault does not hide the next. Interpolation comes after
//! parsing: a value with a newline or a colon stays one scalar.
//!
//! | written | becomes |
//! |---|---|
//! | `${V}` | the variable; an error where it is not set |
//! | `${V:-text}` | the variable, or `text` where it is not set or empty |
//! | `${V:?why}` | the variable, or an error that says why it is needed |
//! | `${file:path}` | the file's content without its last newline; the path is relative to the topology |
//! | `$${V}` | the text `${V}` |

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess};
use serde_saphyr::{DuplicateKeyPolicy, Options, Spanned};

use tidings_operators::params::Step;

use super::diagnostic::{Code, Source, Span, TopologyError, nearest};

/// Deepest nesting. A topology needs ten levels, and a level costs up to 40 KB of stack in a debug
/// build, where a thread has 2 MB. Beyond it the file is refused as such.
const DEPTH_MAX: usize = 24;
/// Most values in a file, aliases written out: a hundred times the complete example. Beyond it the
/// file is refused as such.
const NODES_MAX: usize = 100_000;

/// Where `${…}` gets its values.
pub trait Environment {
    /// The variable, if it is set.
    fn variable(&self, name: &str) -> Option<String>;

    /// The names of all variables, to find the nearest one.
    fn names(&self) -> Vec<String>;

    /// The content of a file, its path as written.
    ///
    /// # Errors
    /// When it can't be read.
    fn file(&self, path: &str) -> std::io::Result<String>;
}

/// Index of a node in its document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeId(pub(super) u32);

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    Sequence(Vec<NodeId>),
    Mapping(Vec<(NodeId, NodeId)>),
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) span: Span,
    pub(super) content: Content,
    /// What is written, where the content came from outside.
    pub(super) written: Option<String>,
}

pub(super) struct Document {
    nodes: Vec<Node>,
    pub(super) root: NodeId,
}

impl Document {
    /// Parses a source. What is found on the way goes to `findings`; without a tree there is `None`.
    pub(super) fn parse(
        source: &Source,
        environment: &dyn Environment,
        findings: &mut Vec<TopologyError>,
    ) -> Option<Self> {
        let mut options = Options::default();
        options.duplicate_keys = DuplicateKeyPolicy::PassThrough;
        options.strict_booleans = true;
        options.leading_zero_numbers_as_strings = true;
        options.with_snippet = false;
        options.budget = serde_saphyr::budget! { max_depth: DEPTH_MAX, max_nodes: NODES_MAX };
        match serde_saphyr::from_str_with_options::<Spanned<Tree>>(source.text(), options) {
            Err(error) => {
                let at = error
                    .location()
                    .map_or(0, |location| source.byte_at(usize_of(location.line()), usize_of(location.column())));
                // The library repeats the place and names its own functions; the snippet shows where.
                let message = error.without_snippet().to_string();
                let message = message.rfind(" at line ").map_or(message.as_str(), |end| &message[..end]);
                let message = match message {
                    breach if breach.starts_with("budget breached") => {
                        format!("more than {DEPTH_MAX} levels or {NODES_MAX} values")
                    }
                    many if many.starts_with("multiple YAML documents") => "a second document begins".to_owned(),
                    other => other.to_owned(),
                };
                let span = Span { start: at, end: (at + 1).min(source.text().len()) };
                let finding = TopologyError::new(Code::Syntax, span, message, "one YAML document");
                let (line, _) = source.line_and_column(at);
                let unquoted = source.text().lines().nth(line - 1).is_some_and(|line| line.contains("${"));
                findings.push(match unquoted {
                    true => finding.hint("between `{` and `}`, put `${…}` in quotes"),
                    false => finding,
                });
                None
            }
            Ok(tree) => {
                let mut builder = Builder { source, environment, findings, nodes: Vec::new() };
                let root = builder.add(tree);
                Some(Self { nodes: builder.nodes, root })
            }
        }
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// Every scalar that has a value from outside: where it stands, its value, what is written.
    pub(super) fn values_from_outside(&self) -> impl Iterator<Item = (Span, &str, &str)> {
        self.nodes.iter().filter_map(|node| match (&node.content, &node.written) {
            (Content::Text(value), Some(written)) => Some((node.span, value.as_str(), written.as_str())),
            _ => None,
        })
    }

    /// The value under `key` of a mapping.
    pub(super) fn get(&self, mapping: NodeId, key: &str) -> Option<(NodeId, NodeId)> {
        self.entries(mapping).iter().copied().find(|(name, _)| self.text(*name) == Some(key))
    }

    pub(super) fn entries(&self, mapping: NodeId) -> &[(NodeId, NodeId)] {
        match &self.node(mapping).content {
            Content::Mapping(entries) => entries,
            _ => &[],
        }
    }

    pub(super) fn text(&self, id: NodeId) -> Option<&str> {
        match &self.node(id).content {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The span of what a path of keys and indices leads to, or of the last step that exists.
    pub(super) fn span_at(&self, from: NodeId, path: &[Step]) -> Span {
        let mut at = from;
        let mut span = self.node(from).span;
        for step in path {
            let next = match (step, &self.node(at).content) {
                (Step::Key(key), _) => self.get(at, key).map(|(_, value)| value),
                (Step::KeyItself(key), _) => {
                    return self.get(at, key).map_or(span, |(name, _)| self.node(name).span);
                }
                (Step::Index(index), Content::Sequence(items)) => items.get(*index).copied(),
                (Step::Index(_), _) => None,
            };
            let Some(next) = next else { return span };
            at = next;
            span = self.node(at).span;
        }
        span
    }
}

/// What the parser hands over: like a node, but nested.
enum Tree {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    Sequence(Vec<Spanned<Tree>>),
    Mapping(Vec<(Spanned<Tree>, Spanned<Tree>)>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> de::Visitor<'de> for Any {
            type Value = Tree;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any YAML value")
            }
            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Null)
            }
            fn visit_none<E>(self) -> Result<Tree, E> {
                Ok(Tree::Null)
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
                deserializer.deserialize_any(Any)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
                Ok(Tree::Bool(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
                Ok(Tree::Signed(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
                Ok(Tree::Unsigned(value))
            }
            fn visit_i128<E: de::Error>(self, value: i128) -> Result<Tree, E> {
                Ok(Tree::Text(value.to_string()))
            }
            fn visit_u128<E: de::Error>(self, value: u128) -> Result<Tree, E> {
                Ok(Tree::Text(value.to_string()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
                Ok(Tree::Float(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
                Ok(Tree::Text(value.to_owned()))
            }
            fn visit_string<E>(self, value: String) -> Result<Tree, E> {
                Ok(Tree::Text(value))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = access.next_element()? {
                    items.push(item);
                }
                Ok(Tree::Sequence(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = access.next_entry()? {
                    entries.push(entry);
                }
                Ok(Tree::Mapping(entries))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

fn usize_of(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

struct Builder<'a> {
    source: &'a Source,
    environment: &'a dyn Environment,
    findings: &'a mut Vec<TopologyError>,
    nodes: Vec<Node>,
}

impl Builder<'_> {
    fn add(&mut self, tree: Spanned<Tree>) -> NodeId {
        let mut span = self.span(&tree);
        let mut written = None;
        let content = match tree.value {
            Tree::Null => Content::Null,
            Tree::Bool(value) => Content::Bool(value),
            Tree::Signed(value) => Content::Signed(value),
            Tree::Unsigned(value) => Content::Unsigned(value),
            Tree::Float(value) => Content::Float(value),
            Tree::Text(text) => {
                let (text, from_outside) = self.interpolate(&text, span);
                written = from_outside;
                Content::Text(text)
            }
            Tree::Sequence(items) => {
                let items: Vec<_> = items.into_iter().map(|item| self.add(item)).collect();
                span = self.collection_span(span, items.first().copied(), items.last().copied());
                Content::Sequence(items)
            }
            Tree::Mapping(entries) => {
                let entries = self.add_entries(entries);
                let (first, last) = (entries.first(), entries.last());
                span = self.collection_span(span, first.map(|(key, _)| *key), last.map(|(_, value)| *value));
                Content::Mapping(entries)
            }
        };
        let id = NodeId(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX));
        self.nodes.push(Node { span, content, written });
        id
    }

    /// Keys are names, never values: `5:` and `true:` are what is written, and nothing is
    /// interpolated in them.
    fn add_entries(&mut self, entries: Vec<(Spanned<Tree>, Spanned<Tree>)>) -> Vec<(NodeId, NodeId)> {
        let mut kept: Vec<(NodeId, NodeId)> = Vec::new();
        let mut seen: std::collections::HashMap<String, Span> = std::collections::HashMap::new();
        for (key, value) in entries {
            let span = self.span(&key);
            let name = match key.value {
                Tree::Text(text) => text,
                Tree::Sequence(_) | Tree::Mapping(_) => {
                    let found = "a list or a mapping as a key";
                    self.findings.push(TopologyError::new(Code::WrongType, span, found, "a name"));
                    continue;
                }
                _ => self.source.slice(span).to_owned(),
            };
            if let Some(first) = seen.get(&name) {
                let found = format!("the key `{name}` stands twice");
                let finding = TopologyError::new(Code::DuplicateKey, span, found, "each key once");
                self.findings.push(finding.related(*first, "first here"));
                continue;
            }
            seen.insert(name.clone(), span);
            let id = NodeId(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX));
            self.nodes.push(Node { span, content: Content::Text(name), written: None });
            let value = self.add(value);
            kept.push((id, value));
        }
        kept
    }

    fn span<T>(&self, tree: &Spanned<T>) -> Span {
        let location = tree.referenced;
        let span = location.span();
        let start = match span.byte_offset() {
            Some(start) => usize_of(start),
            None => self.source.byte_at(usize_of(location.line()), usize_of(location.column())),
        };
        let start = start.min(self.source.text().len());
        let end = start.saturating_add(usize_of(span.byte_len().unwrap_or(0))).min(self.source.text().len());
        let trimmed = self.source.slice(Span { start, end }).trim_end().len();
        Span { start, end: start + trimmed }
    }

    /// The parser gives a collection's first byte only. In flow style it ends behind its last entry;
    /// in block style it has no text of its own and stands where its first entry stands.
    fn collection_span(&self, span: Span, first: Option<NodeId>, last: Option<NodeId>) -> Span {
        let span_of = |id: NodeId| self.nodes[id.0 as usize].span;
        let flow = matches!(self.source.slice(span), "{" | "[");
        if !flow {
            return first.map_or(span, span_of);
        }
        let inside = last.map_or(span.end, |last| span_of(last).end.max(span.end));
        let rest = self.source.text().get(inside..).unwrap_or_default();
        let blank = rest.len() - rest.trim_start_matches([' ', '\n', ',']).len();
        let closed = rest[blank..].starts_with(['}', ']']);
        Span { start: span.start, end: if closed { inside + blank + 1 } else { inside } }
    }

    /// The text with its variables put in, and the text as written where there were any.
    fn interpolate(&mut self, text: &str, span: Span) -> (String, Option<String>) {
        if !text.contains("${") {
            return (text.to_owned(), None);
        }
        let (mut out, mut rest, mut from_outside) = (String::new(), text, false);
        while let Some(at) = rest.find("${") {
            let (before, after) = (&rest[..at], &rest[at + 2..]);
            if let Some(before) = before.strip_suffix('$') {
                out.push_str(before);
                out.push_str("${");
                rest = after;
                continue;
            }
            out.push_str(before);
            let Some(end) = after.find('}') else {
                let finding = TopologyError::new(
                    Code::Interpolation,
                    span,
                    format!("`${{{after}` has no end"),
                    "`${NAME}`, `${NAME:-default}`, `${NAME:?why}` or `${file:path}`",
                );
                self.findings.push(finding.hint("write `$${` for the text `${`"));
                return (text.to_owned(), Some(text.to_owned()));
            };
            from_outside = true;
            match self.resolve(&after[..end]) {
                Ok(value) => out.push_str(&value),
                Err(finding) => self.findings.push(TopologyError { span, ..*finding }),
            }
            rest = &after[end + 1..];
        }
        out.push_str(rest);
        (out, from_outside.then(|| text.to_owned()))
    }

    fn resolve(&self, inside: &str) -> Result<String, Box<TopologyError>> {
        let nowhere = Span::default();
        if let Some(path) = inside.strip_prefix("file:") {
            return match self.environment.file(path) {
                Ok(content) => Ok(content.strip_suffix('\n').map(str::to_owned).unwrap_or(content)),
                Err(error) => Err(Box::new(
                    TopologyError::new(
                        Code::UnreadableFile,
                        nowhere,
                        format!("cannot read the file `{path}`: {error}"),
                        "a readable file",
                    )
                    .hint("paths are relative to the topology's folder"),
                )),
            };
        }
        let (name, otherwise) = match inside.find(':') {
            Some(at) => (&inside[..at], Some(&inside[at + 1..])),
            None => (inside, None),
        };
        let valid = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let operation = otherwise.map(|text| (text.get(..1).unwrap_or_default(), text.get(1..).unwrap_or_default()));
        if !valid || operation.is_some_and(|(sign, _)| sign != "-" && sign != "?") {
            return Err(Box::new(TopologyError::new(
                Code::Interpolation,
                nowhere,
                format!("`${{{inside}}}` can't be read"),
                "`${NAME}`, `${NAME:-default}`, `${NAME:?why}` or `${file:path}`",
            )));
        }
        let value = self.environment.variable(name);
        match (operation, value) {
            (None, Some(value)) => Ok(value),
            (Some(_), Some(value)) if !value.is_empty() => Ok(value),
            (Some(("-", default)), _) => Ok(default.to_owned()),
            (operation, _) => {
                let expected = match operation {
                    Some((_, why)) if !why.is_empty() => why.to_owned(),
                    _ => "the variable to be set".to_owned(),
                };
                let names = self.environment.names();
                let finding = TopologyError::new(
                    Code::UnsetVariable,
                    nowhere,
                    format!("the variable `{name}` is not set"),
                    expected,
                );
                Err(Box::new(TopologyError {
                    nearest: nearest(name, names.iter().map(String::as_str)).map(str::to_owned),
                    hint: Some(format!("set it, or give a default: `${{{name}:-default}}`")),
                    ..finding
                }))
            }
        }
    }
}
