//! Which operators and providers there are: the registries that the loader is given.
//!
//! A kind brings the type of its parameters. The loader reads that type with spans, asks its kind
//! for what serde can't say, and keeps what the type writes back: the same JSON from which the
//! runtime makes the type again, defaults included.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tidings_operators::keyed::Operator;
use tidings_operators::params::{InvalidParam, Mistake, Names, Position, Report, SideInput};
use tidings_operators::registry;
use tidings_schemas::channel::Channel;
use tidings_sinks::providers;

use super::decode::{Findings, decode_apart};
use super::diagnostic::{Code, TopologyError};
use super::tree::{Document, NodeId};

/// What a kind's parameters are read from.
pub(super) struct Reader<'a> {
    pub(super) document: &'a Document,
    pub(super) node: NodeId,
    pub(super) findings: &'a Findings,
    /// The keys that the loader reads itself.
    pub(super) apart: &'a [&'static str],
    pub(super) names: &'a Names,
}

impl Reader<'_> {
    fn read<P: DeserializeOwned>(&self) -> Option<P> {
        decode_apart(self.document, self.node, self.findings, self.apart)
    }

    fn report(&self, invalid: InvalidParam) {
        let code = match invalid.mistake {
            Mistake::InvalidValue => Code::InvalidValue,
            Mistake::ZeroWindow => Code::ZeroWindow,
            Mistake::ZeroLimit => Code::ZeroLimit,
            Mistake::LowThreshold => Code::LowThreshold,
            Mistake::UnknownChannel => Code::UnknownChannel,
            Mistake::UnknownType => Code::UnknownType,
            Mistake::UnknownCategory => Code::UnknownCategory,
        };
        let span = self.document.span_at(self.node, &invalid.path);
        let finding = TopologyError::new(code, span, invalid.found, invalid.expected);
        self.findings.borrow_mut().push(match &invalid.wrong {
            Some((wrong, names)) => finding.nearest(wrong, names.iter().map(String::as_str)),
            None => finding,
        });
    }
}

fn read_operator<O: Operator>(reader: &Reader<'_>) -> Option<Value> {
    let params: O::Params = reader.read()?;
    let mut report = Report::new(Some(reader.names));
    O::check(&params, &mut report);
    report.findings.into_iter().for_each(|invalid| reader.report(invalid));
    serde_json::to_value(params).ok()
}

fn read_provider<P: DeserializeOwned + Serialize>(reader: &Reader<'_>) -> Option<Value> {
    serde_json::to_value(reader.read::<P>()?).ok()
}

/// One kind of operator.
#[derive(Clone, Copy, Debug)]
pub(super) struct OperatorKind {
    pub(super) position: Position,
    pub(super) merges: bool,
    pub(super) single: bool,
    pub(super) needs: &'static [SideInput],
    pub(super) read: fn(&Reader<'_>) -> Option<Value>,
    pub(super) schema: fn(&mut SchemaGenerator) -> Schema,
}

/// The kinds of operators, by name.
#[derive(Clone, Debug, Default)]
pub struct OperatorKinds(pub(super) BTreeMap<&'static str, OperatorKind>);

impl registry::Visitor for OperatorKinds {
    fn operator<O: Operator>(&mut self) {
        let kind = OperatorKind {
            position: O::POSITION,
            merges: O::MERGES,
            single: O::SINGLE,
            needs: O::JOINS,
            read: read_operator::<O>,
            schema: <O::Params as JsonSchema>::json_schema,
        };
        self.0.insert(O::KIND, kind);
    }
}

impl OperatorKinds {
    /// The operators of this build.
    #[must_use]
    pub fn standard() -> Self {
        let mut kinds = Self::default();
        registry::visit(&mut kinds);
        kinds
    }

    /// The names of all kinds, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + Clone + '_ {
        self.0.keys().copied()
    }
}

/// One kind of provider.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProviderKind {
    pub(super) channel: Channel,
    pub(super) read: fn(&Reader<'_>) -> Option<Value>,
    pub(super) schema: fn(&mut SchemaGenerator) -> Schema,
}

/// The kinds of providers, by name.
#[derive(Clone, Debug, Default)]
pub struct ProviderKinds(pub(super) BTreeMap<&'static str, ProviderKind>);

impl providers::Visitor for ProviderKinds {
    fn provider<P: DeserializeOwned + Serialize + JsonSchema>(&mut self, kind: &'static providers::ProviderKind) {
        let read = read_provider::<P>;
        self.0.insert(kind.name, ProviderKind { channel: kind.channel, read, schema: P::json_schema });
    }
}

impl ProviderKinds {
    /// The providers of this build.
    #[must_use]
    pub fn standard() -> Self {
        let mut kinds = Self::default();
        providers::visit(&mut kinds);
        kinds
    }

    /// The names of all kinds, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + Clone + '_ {
        self.0.keys().copied()
    }
}
