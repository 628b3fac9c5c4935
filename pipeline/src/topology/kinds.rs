//! Which operators and providers there are: the registries that the loader is given.
//!
//! A kind brings the type of its parameters. The loader reads that type with spans, asks it for
//! what serde can't say ([`Params::check`]), and keeps what the type writes back: the same JSON
//! from which the runtime makes the type again, defaults included.

use std::collections::{BTreeMap, BTreeSet};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tidings_schemas::channel::Channel;

use super::config::SideInput;
use super::decode::{Findings, decode_apart};
use super::diagnostic::{Code, TopologyError, nearest};
use super::tree::{Document, NodeId, Step};

/// Where in a chain a kind may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Reads raw events; nothing else may. Once.
    First,
    /// Works on items, before `route`.
    Items,
    /// Turns items into legs. Once.
    Route,
    /// Works on legs, after `route`.
    Legs,
}

/// What parameters know about the rest of the topology when they are checked.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// The types that policies know.
    pub types: BTreeSet<String>,
    /// The categories that policies know.
    pub categories: BTreeSet<String>,
}

/// The parameters of a kind. Unknown keys must be refused (`deny_unknown_fields`).
pub trait Params: DeserializeOwned + Serialize + JsonSchema {
    /// Says what is wrong with values that could be read.
    fn check(&self, _context: &Context, _report: &mut Report<'_>) {}
}

/// Collects what [`Params::check`] finds.
pub struct Report<'a> {
    document: &'a Document,
    node: NodeId,
    findings: &'a Findings,
}

impl Report<'_> {
    /// Reports a finding at `path` below the parameters.
    pub fn finding(&mut self, path: &[Step], code: Code, found: impl Into<String>, expected: impl Into<String>) {
        self.push(path, TopologyError::new(code, Default::default(), found, expected));
    }

    /// Reports a wrong name at `path`, with the nearest of `names`.
    pub fn unknown<'n>(
        &mut self,
        path: &[Step],
        code: Code,
        what: &str,
        wrong: &str,
        expected: impl Into<String>,
        names: impl IntoIterator<Item = &'n str>,
    ) {
        let finding = TopologyError::new(code, Default::default(), format!("unknown {what} `{wrong}`"), expected);
        self.push(path, TopologyError { nearest: nearest(wrong, names).map(str::to_owned), ..finding });
    }

    fn push(&mut self, path: &[Step], finding: TopologyError) {
        let span = self.document.span_at(self.node, path);
        self.findings.borrow_mut().push(TopologyError { span, ..finding });
    }
}

/// What a kind's parameters are read from. Opaque: a registry only passes it on.
pub struct Reader<'a> {
    pub(super) document: &'a Document,
    pub(super) node: NodeId,
    pub(super) findings: &'a Findings,
    /// The keys that the loader reads itself.
    pub(super) apart: &'a [&'static str],
    pub(super) context: &'a Context,
}

fn read<P: Params>(reader: &Reader<'_>) -> Option<Value> {
    let params: P = decode_apart(reader.document, reader.node, reader.findings, reader.apart)?;
    let mut report = Report { document: reader.document, node: reader.node, findings: reader.findings };
    params.check(reader.context, &mut report);
    serde_json::to_value(params).ok()
}

/// One kind of operator.
#[derive(Clone, Copy, Debug)]
pub struct OperatorKind {
    pub(super) position: Position,
    pub(super) needs: &'static [SideInput],
    pub(super) read: fn(&Reader<'_>) -> Option<Value>,
    pub(super) schema: fn(&mut SchemaGenerator) -> Schema,
}

/// The kinds of operators, by name.
#[derive(Clone, Debug, Default)]
pub struct OperatorKinds(pub(super) BTreeMap<&'static str, OperatorKind>);

impl OperatorKinds {
    /// Adds the kind `name` with parameters of type `P`, which joins the side inputs in `needs`.
    #[must_use]
    pub fn with<P: Params>(mut self, name: &'static str, position: Position, needs: &'static [SideInput]) -> Self {
        self.0.insert(name, OperatorKind { position, needs, read: read::<P>, schema: P::json_schema });
        self
    }

    /// The names of all kinds, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + Clone + '_ {
        self.0.keys().copied()
    }
}

/// One kind of provider.
#[derive(Clone, Copy, Debug)]
pub struct ProviderKind {
    pub(super) channels: &'static [Channel],
    pub(super) read: fn(&Reader<'_>) -> Option<Value>,
    pub(super) schema: fn(&mut SchemaGenerator) -> Schema,
}

/// The kinds of providers, by name.
#[derive(Clone, Debug, Default)]
pub struct ProviderKinds(pub(super) BTreeMap<&'static str, ProviderKind>);

impl ProviderKinds {
    /// Adds the kind `name` with parameters of type `P`, which carries `channels`.
    #[must_use]
    pub fn with<P: Params>(mut self, name: &'static str, channels: &'static [Channel]) -> Self {
        self.0.insert(name, ProviderKind { channels, read: read::<P>, schema: P::json_schema });
        self
    }

    /// The names of all kinds, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + Clone + '_ {
        self.0.keys().copied()
    }
}
