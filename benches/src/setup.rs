//! The topology under measurement: `examples/topology.yaml`, as `tidings run` would load it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tidings_operators::calendar::Calendar;
use tidings_operators::ingest::{Source, SourceKind};
use tidings_operators::params::SideInput;
use tidings_operators::registry::{Input, Wired, Wiring};
use tidings_operators::rules::Rules;
use tidings_pipeline::topology::{
    self, FixedEnvironment, Loader, OperatorKinds, Place, ProviderKinds, Role, SourceText,
};
use tidings_schemas::channel::{Channel, ChannelSet};
use tidings_schemas::units::Period;

/// The topology of every bench.
const TOPOLOGY: &str = include_str!("../../examples/topology.yaml");

/// A source of the dataflow.
#[derive(Clone, Debug)]
pub struct Read {
    /// Its name in the topology.
    pub name: String,
    /// Its topic.
    pub topic: String,
    /// Its place in the file: earlier ones are read first.
    pub rank: u8,
    /// Its guaranteed share, in thousandths.
    pub at_least_permille: u16,
    /// Whether it must be read to its end before anything is decided.
    pub side_input: bool,
}

/// What a run of the decide stage is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Operators and sources.
    pub wiring: Wiring,
    /// How the sources are read, by number.
    pub sources: Vec<Read>,
    /// Policies and calendar.
    pub rules: Arc<Rules>,
    /// The topology's canonical bytes.
    pub topology: Arc<[u8]>,
}

impl Setup {
    /// The example topology.
    ///
    /// # Errors
    /// When it is refused.
    pub fn example() -> Result<Self> {
        Self::of("examples/topology.yaml", TOPOLOGY)
    }

    /// The topology that a file's text describes.
    ///
    /// # Errors
    /// When it is refused.
    pub fn of(file: &str, text: &str) -> Result<Self> {
        let calendar = Calendar::bundled();
        let (operators, providers) = (OperatorKinds::standard(), ProviderKinds::standard());
        let environment = FixedEnvironment::default();
        let loader =
            Loader { operators: &operators, providers: &providers, calendar: &calendar, environment: &environment };
        let source = SourceText::new(file, text);
        let config = loader.check(source).map_err(|refused| anyhow!("{}", refused.render(false)))?.config;

        let mut sources = Vec::new();
        let mut engine = Vec::new();
        for source in &config.topology.sources {
            let kind = match source.role {
                // The critical path reads it, beside the dataflow.
                Role::Critical => continue,
                Role::Events => {
                    SourceKind::Events { unknown_to_data: source.unknown_fields == topology::UnknownFields::Data }
                }
                Role::Returned => SourceKind::Returned,
                Role::SideInput(SideInput::Profile) => SourceKind::Profiles,
                Role::SideInput(SideInput::Reachability) => SourceKind::Addresses,
            };
            let Place::Topic(topic) = &source.place else { continue };
            sources.push(Read {
                name: source.name.clone(),
                topic: topic.clone(),
                rank: u8::try_from(sources.len()).unwrap_or(u8::MAX),
                at_least_permille: u16::from(source.at_least.0) * 10,
                side_input: matches!(source.role, Role::SideInput(_)),
            });
            engine.push(Source { id: source.name.as_str().into(), kind });
        }

        let ids: Vec<&str> = config.topology.operators.iter().map(|operator| operator.id.as_str()).collect();
        let mut wired = Vec::new();
        let mut spread = Duration::ZERO;
        for operator in &config.topology.operators {
            let place = |input: &topology::Input| match input {
                topology::Input::Source(name) => {
                    sources.iter().position(|source| source.name == *name).map(Input::Source)
                }
                topology::Input::Operator(id) => ids.iter().position(|other| other == id).map(Input::Operator),
            };
            let inputs = operator.inputs.iter().map(|input| {
                place(input).with_context(|| format!("operator `{}`: no input `{}`", operator.id, input.name()))
            });
            if let Some(text) = operator.params.get("spread").and_then(serde_json::Value::as_str) {
                spread = text.parse::<Period>().map_err(|error| anyhow!("spread of `{}`: {error}", operator.id))?.0;
            }
            wired.push(Wired {
                id: operator.id.as_str().into(),
                kind: operator.kind.clone(),
                params: written(&operator.params),
                when: operator.when.clone(),
                inputs: inputs.collect::<Result<_>>()?,
                to_lanes: config.topology.sinks.values().any(|sink| sink.inputs.contains(&operator.id)),
            });
        }
        // The workload's mix has text messages, for which the example has no sink.
        let provided: ChannelSet = config.topology.sinks.keys().copied().chain([Channel::Sms]).collect();
        let rules = Rules::new(&config.policies, provided, spread, calendar)?;
        let wiring = Wiring { sources: engine, operators: wired, more: &[] };
        Ok(Self { wiring, sources, rules: Arc::new(rules), topology: config.topology.canonical().into() })
    }

    /// The same with one more stateful operator: a second `dedup` behind the first, of which every event is new.
    ///
    /// # Errors
    /// When there is no first.
    pub fn with_one_more(&self) -> Result<Self> {
        let mut more = self.clone();
        let operators = &mut more.wiring.operators;
        let place = operators.iter().position(|operator| operator.kind == "dedup").context("no `dedup`")?;
        for operator in &mut operators[place + 1..] {
            for input in &mut operator.inputs {
                if let Input::Operator(number) = input {
                    *number += usize::from(*number >= place);
                }
            }
        }
        let second =
            Wired { id: "dedup_again".into(), inputs: vec![Input::Operator(place)], ..operators[place].clone() };
        operators.insert(place + 1, second);
        Ok(more)
    }

    /// The number of the source of this name.
    ///
    /// # Errors
    /// When the topology has none.
    pub fn source(&self, name: &str) -> Result<u16> {
        let place = self.sources.iter().position(|source| source.name == name);
        place
            .and_then(|place| u16::try_from(place).ok())
            .with_context(|| format!("the topology has no source `{name}`"))
    }
}

/// The parameters that were written or have a default; the loader shows the others as null.
fn written(params: &serde_json::Value) -> serde_json::Value {
    let mut params = params.clone();
    if let Some(params) = params.as_object_mut() {
        params.retain(|_, value| !value.is_null());
    }
    params
}
