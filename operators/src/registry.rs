//! Every kind of operator, one line each, and the chain that a topology wires of them.

use std::sync::Arc;

use crate::harness::chain::{Chain, Node, Target};
use crate::harness::stage::{Keyed, Stage};
use crate::ingest::{Path, Source};
use crate::keyed::Operator;
use crate::params::Report;
use crate::when;

/// A kind of operator.
#[derive(Debug)]
pub struct OperatorKind {
    /// Its word in the YAML.
    pub kind: &'static str,
    build: Build,
}

/// A stage of an operator's id, number and parameters.
type Build = fn(Arc<str>, usize, serde_json::Value) -> Result<Box<dyn Stage>, String>;

impl OperatorKind {
    /// The kind of `O`: for a wiring with operators that are not of the house.
    #[must_use]
    pub const fn of<O: Operator>() -> Self {
        Self { kind: O::KIND, build: |id, number, params| Ok(Box::new(Keyed::new(id, number, make::<O>(params)?))) }
    }
}

/// Somebody who needs the types behind the kinds: the loader.
pub trait Visitor {
    /// Called once for each kind.
    fn operator<O: Operator>(&mut self);
}

macro_rules! kinds {
    ($($operator:ty),* $(,)?) => {
        /// All kinds.
        pub const KINDS: &[OperatorKind] = &[$(OperatorKind::of::<$operator>()),*];

        /// Shows all kinds to `visitor`, as types.
        pub fn visit(visitor: &mut impl Visitor) {
            $(visitor.operator::<$operator>();)*
        }
    };
}

// A new operator is one file and one line here.
kinds![
    crate::validate::Validate,
    crate::dedup::Dedup,
    crate::schedule::Schedule,
    crate::preferences::Preferences,
    crate::aggregate::Aggregate,
    crate::route::Route,
    crate::quiet_hours::QuietHours,
    crate::rate_limit::RateLimit,
];

fn make<O: Operator>(params: serde_json::Value) -> Result<O, String> {
    let params = serde_json::from_value(params).map_err(|error| error.to_string())?;
    let mut report = Report::new(None);
    O::check(&params, &mut report);
    match report.findings.into_iter().next() {
        Some(finding) => Err(finding.to_string()),
        None => Ok(O::new(params)),
    }
}

/// The kind of this name.
#[must_use]
pub fn kind(name: &str) -> Option<&'static OperatorKind> {
    KINDS.iter().find(|kind| kind.kind == name)
}

/// Where an operator's input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The source of this number.
    Source(usize),
    /// The operator of this number, which stands earlier.
    Operator(usize),
}

/// An operator as a topology wires it.
#[derive(Clone, Debug)]
pub struct Wired {
    /// Its id: state hangs on it.
    pub id: Arc<str>,
    /// Its kind.
    pub kind: String,
    /// Its parameters.
    pub params: serde_json::Value,
    /// A condition; items for which it does not hold pass untouched.
    pub when: Option<String>,
    /// Its inputs; a place in this list is the port's number.
    pub inputs: Vec<Input>,
    /// Whether its output goes to the lanes.
    pub to_lanes: bool,
}

/// A topology as the engine needs it: operators in topological order.
#[derive(Clone, Debug)]
pub struct Wiring {
    /// The sources.
    pub sources: Vec<Source>,
    /// The operators.
    pub operators: Vec<Wired>,
    /// Kinds beside those of the house.
    pub more: &'static [OperatorKind],
}

/// Why a wiring makes no chain. The loader finds all of these first, with line and column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("operator `{operator}`: {problem}")]
pub struct WiringError {
    /// The operator's id.
    pub operator: String,
    /// What is wrong.
    pub problem: String,
}

impl Wiring {
    /// A fresh chain for one worker.
    ///
    /// # Errors
    /// When an operator's kind, parameters, condition or inputs are wrong.
    pub fn chain(&self, path: Path) -> Result<Chain, WiringError> {
        let mut nodes: Vec<Node> = Vec::with_capacity(self.operators.len());
        let mut sources = vec![Vec::new(); self.sources.len()];
        for (number, wired) in self.operators.iter().enumerate() {
            let wrong = |problem: String| WiringError { operator: wired.id.to_string(), problem };
            let more = || self.more.iter().find(|kind| kind.kind == wired.kind);
            let kind =
                kind(&wired.kind).or_else(more).ok_or_else(|| wrong(format!("unknown kind `{}`", wired.kind)))?;
            let stage = (kind.build)(Arc::clone(&wired.id), number, wired.params.clone()).map_err(wrong)?;
            let when =
                wired.when.as_deref().map(when::compile).transpose().map_err(|error| wrong(error.to_string()))?;
            for (port, input) in wired.inputs.iter().enumerate() {
                let target = Target::Operator(number, u8::try_from(port).unwrap_or(u8::MAX));
                match *input {
                    Input::Source(source) => {
                        let targets: Option<&mut Vec<Target>> = sources.get_mut(source);
                        targets.ok_or_else(|| wrong(format!("no source of number {source}")))?.push(target);
                    }
                    Input::Operator(earlier) => {
                        let node = nodes.get_mut(earlier);
                        node.ok_or_else(|| wrong(format!("input {earlier} does not stand earlier")))?
                            .targets
                            .push(target);
                    }
                }
            }
            let operators = wired.inputs.iter().filter(|input| matches!(input, Input::Operator(_))).count();
            let targets = if wired.to_lanes { vec![Target::Lanes] } else { Vec::new() };
            // A source that enters below others overtakes, within a batch, what the operators above hand on.
            let joins = operators > 0 && wired.inputs.len() > 1;
            nodes.push(Node { id: Arc::clone(&wired.id), when, stage, targets, joins });
        }
        Ok(Chain::new(nodes, sources, path))
    }
}
